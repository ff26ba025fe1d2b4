"""What a worker has on its disk is what its recipe names, whatever happened to the disk or to the shared store."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from catalog import record, schema
from catalog.hub import Hub
from catalog.schema import open_catalogue
from flows.nightly import plan_now
from flows.plan import Input, base_of, input_of
from flows.scan import scan, scan_and_record
from flows.settings import load_settings
from flows.sharing_worker import worker_for
from flows.worker import Worker
from tests.catalog.hub_contents import HubServer, always
from tests.catalog.hub_server import serving
from ziplora.alpha import read_config
from ziplora.header import Refusal
from ziplora.methods.solution import unheard
from ziplora.recipe import sha256_of

from .conftest import Ziplora
from .world import DIRECT, Place, settle

NIGHT = "night"


@dataclass
class Bench:
    """A worker, an adapter of the Hub that is written in PEFT's way, and the Hub."""

    worker: Worker
    adapter: Input
    server: HubServer

    def refusals(self) -> list[str]:
        with self.worker.catalogue.connect() as connection:
            return list(connection.scalars(select(schema.Refusal.code)))

    def flip_a_bit(self, file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


Make = Callable[..., Bench]


@pytest.fixture
def make(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with serving() as server:
        server.add_folder("me/neon-lora", world / "adapters" / "neon-lora")

        def bench(**changes: Any) -> Bench:
            sources = [{"repository": "me/neon-lora", "role": "style"}]
            settings = load_settings(settle(tmp_path / "night", world, sources=sources, **changes).config)
            catalogue = open_catalogue(settings.catalogue, migrate=True)
            record.record_night_started(catalogue, NIGHT, {}, datetime.now(UTC))
            (found,) = scan_and_record(settings, Hub(server.endpoint), catalogue, NIGHT)
            place = (found.repository, found.revision, found.file_name)
            adapter = input_of(settings, "style", str(found.sha256), found.licence, found.facts, place)
            monkeypatch.setattr("flows.worker.Hub", lambda: Hub(server.endpoint))
            return Bench(worker_for(settings, base_of(settings)), adapter, server)

        yield bench


def test_an_adapter_is_fetched_with_its_configuration(make: Make) -> None:
    bench = make()
    bench.worker.fetch(bench.adapter, NIGHT)
    assert sha256_of(bench.adapter.file) == bench.adapter.sha256
    assert "lora_alpha" in read_config(bench.adapter.file.with_name("adapter_config.json"))


def test_without_its_configuration_there_are_no_weights(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", ())
    bench = make()
    bench.server.failing = {"adapter_config.json": 429}
    with pytest.raises(Exception, match="HUB_BUSY"):
        bench.worker.fetch(bench.adapter, NIGHT)
    assert not bench.adapter.file.exists()


def test_a_copy_that_rotted_is_set_aside_and_fetched_again(make: Make) -> None:
    bench = make()
    bench.worker.fetch(bench.adapter, NIGHT)
    bench.flip_a_bit(bench.adapter.file)
    bench.worker.fetch(bench.adapter, NIGHT)
    assert sha256_of(bench.adapter.file) == bench.adapter.sha256
    assert (bench.worker.store.root / "quarantine" / bench.adapter.file.name).is_file()
    assert bench.refusals() == ["OBJECT_CORRUPT"]


def test_a_copy_that_rotted_in_the_shared_store_is_replaced_there(make: Make, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    bench = make(store=f"file://{shared}")
    bench.worker.fetch(bench.adapter, NIGHT)
    there = shared / bench.adapter.file.relative_to(bench.worker.store.root)
    there.parent.mkdir(parents=True)
    shutil.copy(bench.adapter.file, there)
    for file in (there, bench.adapter.file):
        bench.flip_a_bit(file)
    bench.worker.fetch(bench.adapter, NIGHT)
    assert sha256_of(there) == sha256_of(bench.adapter.file) == bench.adapter.sha256


def test_a_sound_copy_of_the_shared_store_is_taken_without_the_hub(make: Make, tmp_path: Path) -> None:
    bench = make(store=f"file://{tmp_path / 'shared'}")
    bench.worker.fetch(bench.adapter, NIGHT)
    there = tmp_path / "shared" / bench.adapter.file.relative_to(bench.worker.store.root)
    there.parent.mkdir(parents=True)
    shutil.move(bench.adapter.file, there)
    bench.server.trouble = always("503")
    bench.worker.fetch(bench.adapter, NIGHT)
    assert sha256_of(bench.adapter.file) == bench.adapter.sha256


def test_absurd_weights_are_merged_only_when_somebody_says_so(world: Path, ziplora: Ziplora, tmp_path: Path) -> None:
    there: Place = settle(tmp_path / "night", world)
    (weights,) = (there.folder / "adapters" / "robot-lora").glob("*.safetensors")
    tensors = load_file(weights)
    save_file(
        {key: tensor * (1000 if "up" in key or "lora_B" in key else 1) for key, tensor in tensors.items()}, weights
    )
    pair = (weights.parent, there.folder / "adapters" / "bricks-lora")
    asked = ("merge", *pair, "-o", tmp_path / "m.safetensors", "--base", world / "base", "--method", "direct")
    refused = ziplora(*asked)
    assert refused.code == 2
    assert refused.err.startswith("WEIGHT_OUTLIER")
    assert ziplora(*asked, "--allow-outliers").code == 0
    for allowed in (False, True):
        there.set(merge_outliers=allowed, methods=DIRECT, pairs={"include": ["robot x bricks"]})
        settings = load_settings(there.config)
        (job,) = plan_now(settings, base_of(settings), None, list(scan(settings, Hub(), None))).jobs
        with nullcontext() if allowed else pytest.raises(Refusal, match="WEIGHT_OUTLIER"):
            worker_for(settings, base_of(settings)).merge(job, unheard)

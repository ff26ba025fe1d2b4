"""What is published loads as its card says, with stock diffusers in a process that has nothing of ours."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import record
from catalog.hub import Hub
from catalog.publish import Policy, Published, publish
from catalog.release import Release
from catalog.schema import open_catalogue
from tests.catalog.hub_contents import TOKEN, HubServer
from tests.catalog.hub_server import serving
from tests.catalog.releases import release_of
from tests.catalog.samples import merge, result, start
from ziplora.tinyworld.bundle import FILES

from .conftest import Ziplora

_STRANGER = """
import hashlib, json, sys
import torch
from diffusers import StableDiffusionXLPipeline

base, prompt, *lines = sys.argv[1:]
pipeline = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
seen = []
for line in lines:
    exec(line)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(prompt, num_inference_steps=4, guidance_scale=2.0, generator=generator).images[0]
    seen.append(hashlib.sha256(image.tobytes()).hexdigest())
    pipeline.unload_lora_weights()
print(json.dumps(seen))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


def _release(folder: Path, ziplora: Ziplora) -> Release:
    """The robot in bricks of the bundled tiny world, both files as they are exported."""
    parents = (FILES / "adapters" / "robot-lora", FILES / "adapters" / "bricks-lora")
    files = {dialect: folder / f"{dialect}-local.safetensors" for dialect in ("diffusers", "kohya")}
    for dialect, file in files.items():
        said = ziplora("merge", *parents, "--method", "direct", "--dialect", dialect, "-o", file, "--json")
        assert said.code == 0, said.err
    return replace(release_of(folder), weights=files["diffusers"], kohya=files["kohya"])


def _load_lines(server: HubServer, published: Published) -> list[str]:
    """What the cards of a repository say that one should run."""
    repository = server.repositories[published.repository]
    files = repository.commits[repository.head]
    cards = [files[path].decode() for path in sorted(files) if path.endswith("README.md")]
    return [line.strip() for card in cards for line in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]


def _local(file: Path) -> str:
    return f"pipeline.load_lora_weights({str(file.parent)!r}, weight_name={file.name!r})"


def _pictures(server: HubServer, folder: Path, lines: list[str]) -> list[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(folder / "stranger"),
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-c", _STRANGER, str(FILES / "base"), "a sks robot in bricks style", *lines]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_line_on_the_card_draws_what_the_exported_file_draws(
    server: HubServer, ziplora: Ziplora, tmp_path: Path
) -> None:
    release = _release(tmp_path, ziplora)
    catalogue = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    start(catalogue)
    other = replace(release, merge_id=merge(method="direct").merge_id, method="direct")
    for merged in (merge(), merge(method="direct")):
        record.record_done(catalogue, merged, result())
    alone = publish(release, Policy("me"), Hub(server.endpoint), catalogue, dry_run=False)
    shared = publish(other, Policy("me", collection="all"), Hub(server.endpoint), catalogue, dry_run=False)
    (of_its_own,) = _load_lines(server, alone)
    from_the_top, from_the_folder = _load_lines(server, shared)
    assert from_the_top == from_the_folder != of_its_own
    name = f"{release.name}.safetensors"
    kohya = f'pipeline.load_lora_weights("{alone.repository}", subfolder="kohya", weight_name="{name}")'
    lines = ["", _local(release.weights), of_its_own, from_the_folder, _local(release.kohya), kohya]
    bare, local, published, collected, local_kohya, published_kohya = _pictures(server, tmp_path, lines)
    assert published == collected == local != bare
    assert published_kohya == local_kohya != bare

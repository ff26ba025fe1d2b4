"""A night whose adapters come from a Hub and whose results go back to it, over the protocol of the real one."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors import safe_open

from catalog.queries import finished_merge_ids
from catalog.schema import open_catalogue
from flows.nightly import Report, nightly
from flows.plan import Base
from flows.settings import Settings
from flows.tasks import complete_pair
from flows.worker import Worker
from tests.catalog.hub_contents import TOKEN, HubServer, always, nothing_wrong
from tests.catalog.hub_server import serving

from .conftest import Settle, Ziplora
from .world import CLI, DIRECT, Place

_NAMES = ("robot-lora", "fish-lora", "neon-lora", "bricks-lora")
_BEFORE = {f"me/{name}" for name in _NAMES}


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The world's adapters on a Hub, whose address the client has as HF_ENDPOINT would set it at its import."""
    with serving() as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("catalog.story.LOST_BELOW", float("-inf"))  # this world is not trained
        for name in _NAMES:
            running.add_folder(f"me/{name}", world / "adapters" / name)
        yield running


def test_a_base_of_the_hub_is_named_by_the_commit_that_was_loaded(
    world: Path, server: HubServer, tmp_path: Path
) -> None:
    server.add_folder("me/base", world / "base")
    pair, out = [world / "adapters" / name for name in ("robot-lora", "bricks-lora")], tmp_path / "merged.safetensors"
    command = [*CLI, "merge", *map(str, pair), "-o", str(out), "--base", "me/base", "--method", "direct"]

    def merged(**own: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hub"), **own}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    said = merged()
    assert said.returncode == 0, said.stderr
    assert "Warning" not in said.stderr
    with safe_open(out, "pt") as file:
        recipe = json.loads(file.metadata()["ziplora.recipe"])
    assert (recipe["base_model"], recipe["base_revision"]) == ("me/base", server.repositories["me/base"].head)
    server.trouble = always("503")
    again = merged(HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def _commits(server: HubServer) -> list[str]:
    return [request for request in server.requests if "/commit/" in request]


def _from_the_hub(place: Settle, **changes: object) -> Place:
    sources = [
        {"search": {"author": "me", "text": "robot", "base_model": "tiny/base"}, "role": "subject"},
        {"search": {"author": "me", "text": "dog"}, "role": "subject"},
        {"repository": "me/neon-lora", "role": "style"},
        {"repository": "me/nowhere", "role": "style"},
    ]
    return place(sources=sources, methods=[{"method": "direct"}], **changes)


def test_adapters_are_found_read_by_their_headers_and_fetched_by_commit(
    place: Settle, server: HubServer, ziplora: Ziplora
) -> None:
    there = _from_the_hub(place)
    said = ziplora("scan", there.config, "--json")
    assert said.code == 0, said.err
    found = said.document
    assert [one["repository"] for one in found if one["status"] == "usable"] == ["me/robot-lora", "me/neon-lora"]
    (missing,) = [one for one in found if one["reason"]]
    assert (missing["repository"], missing["status"]) == ("me/nowhere", "gone")
    assert server.sent_bytes < 300_000
    report = nightly(str(there.config))
    assert (report.merged, report.failed) == (1, {})
    fetched = list((there.folder / "store" / "adapters").glob("*/*.safetensors"))
    assert {path.stem for path in fetched} == {one["sha256"] for one in found if one["status"] == "usable"}
    head = server.repositories["me/robot-lora"].head
    assert f"GET /me/robot-lora/resolve/{head}/pytorch_lora_weights.safetensors" in server.requests
    sent = server.sent_bytes
    assert nightly(str(there.config)).finished_before == 1
    assert server.sent_bytes - sent < 300_000


def test_a_merge_is_published_in_one_commit_and_once(
    night: tuple[Place, Report], server: HubServer, ziplora: Ziplora
) -> None:
    at = ("--catalogue", night[0].catalogue)
    merge_id = ziplora("pick", "--least-score", "0.0", *at, "--json").document[0]["merge"]["merge_id"]
    told = ziplora("publish", merge_id, "--namespace", "me", *at)
    assert told.code == 0, told.err
    assert "not sent" in told.out.replace("\n", " ")
    assert _commits(server) == []
    sent = ziplora("publish", merge_id, "--namespace", "me", "--send", *at, "--json").document
    assert len(_commits(server)) == 1
    repository = server.repositories[sent["repository"]]
    assert repository.private
    assert set(sent["size_bytes"]) <= set(repository.commits[sent["commit"]])
    again = ziplora("publish", merge_id, "--namespace", "me", "--send", *at, "--json").document
    assert (again["commit"], again["was_there"]) == (sent["commit"], True)
    assert len(_commits(server)) == 1


def test_a_night_publishes_what_scores_enough_and_what_is_refused_stops_nothing(
    place: Settle, server: HubServer, ziplora: Ziplora
) -> None:
    there = place(methods=[{"method": "direct"}], publish={"least_score": 0.0})
    assert nightly(str(there.config)).published == 0
    at = ("--catalogue", there.catalogue)
    best, *others = (one["merge"]["merge_id"] for one in ziplora("pick", *at, "--json").document)
    taken = ziplora("publish", best, "--namespace", "me", *at, "--json")
    assert others
    policy = {"enabled": True, "namespace": "me", "least_score": 0.0}
    there.set(methods=[{"method": "direct"}], publish=policy)
    server.add(taken.document["repository"], {"README.md": b"of somebody else"})
    first = nightly(str(there.config))
    assert (first.published, asdict(first)["unpublished"]) == (len(others), {"NAME_TAKEN": 1})
    assert len(_commits(server)) == len(others)
    assert nightly(str(there.config)).published == 0
    assert len(_commits(server)) == len(others)


def test_a_night_fills_a_collection_of_each_style_and_a_data_set_once(
    place: Settle, server: HubServer, ziplora: Ziplora
) -> None:
    policy = {"enabled": True, "namespace": "me", "least_score": 0.0, "collection": "of-{style}", "dataset": "merged"}
    there = place(methods=DIRECT, publish=policy)
    night = nightly(str(there.config))
    ranked = ziplora("pick", "--catalogue", there.catalogue, "--json").document
    assert (night.published, night.unpublished) == (len(ranked), {})
    made = {name: len(one.commits) - 1 for name, one in server.repositories.items() if name not in _BEFORE}
    of_style = Counter(one["style_name"] for one in ranked)
    assert made == {**{f"me/of-{style}": count for style, count in of_style.items()}, "datasets/me/merged": 1}
    assert all(server.repositories[name].private for name in made)
    again = nightly(str(there.config))
    assert (again.published, again.unpublished, len(_commits(server))) == (0, {}, len(ranked) + 1)
    asked = ("publish", "--dataset", "merged", "--namespace", "me", "--catalogue", there.catalogue, "--json")
    assert ziplora(*asked).document["commit"] is None
    assert ziplora(*asked, "--send").document["was_there"]
    assert ziplora(*asked, "0123abcd").err.startswith("USAGE")


def test_a_hub_that_is_away_ends_the_publishing_and_not_the_night(place: Settle, server: HubServer) -> None:
    policy = {"enabled": True, "namespace": "me", "least_score": 0.0}
    there = place(pairs={"include": ["robot x bricks"]}, methods=[{"method": "direct"}], publish=policy)
    server.failing = {"/api/repos/create": 403}
    report = nightly(str(there.config))
    assert (report.merged, report.published) == (1, 0)
    assert sum(report.unpublished.values()) == 1


def test_a_night_goes_on_with_what_it_saw_of_a_busy_hub(
    place: Settle, server: HubServer, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    there = _from_the_hub(place)
    there.set(sources=[*there.settings["sources"], {"repository": "me/fish-lora", "role": "subject"}], methods=DIRECT)
    server.failing = {"me/fish-lora/": 503}
    said = ziplora("scan", there.config)
    assert said.code == 3
    assert "unanswered HUB_BUSY 1" in " ".join(said.out.split())
    night = ziplora("run", there.config, "--json")
    assert (night.code, night.document["merged"], night.document["refused"]["HUB_BUSY"]) == (1, 1, 1)
    server.failing = {}
    later = ziplora("run", there.config, "--json")
    assert (later.code, later.document["merged"]) == (0, 1)


def test_a_night_without_the_hub_merges_what_is_at_hand_and_the_next_catches_up(
    place: Settle, server: HubServer, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    there = _from_the_hub(place)
    assert nightly(str(there.config)).merged == 1
    policy = {"enabled": True, "namespace": "me", "least_score": 0.0}
    fish = {"repository": "me/fish-lora", "role": "subject"}
    methods = [{"method": "ties"}]
    there.set(sources=[*there.settings["sources"], fish], methods=methods, publish=policy)
    server.trouble = always("503")
    away = ziplora("run", there.config, "--json")
    assert (away.code, away.document["merged"], away.document["failed"]) == (1, 1, {})
    assert (away.document["published"], away.document["withheld"]) == (0, "HUB_BUSY")
    assert away.document["refused"].keys() == {"HUB_BUSY"}
    server.trouble = nothing_wrong
    later = ziplora("run", there.config, "--json")
    assert (later.code, later.document["merged"], later.document["withheld"]) == (0, 1, None)


def test_a_listing_that_shrinks_stops_the_publishing(
    place: Settle, server: HubServer, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"search": {"author": "me", "base_model": "tiny/base"}, "role": "subject"}]
    sources += [{"folder": "adapters", "role": "style", "names": ["neon-lora"]}]
    there = place(sources=sources, methods=DIRECT, publish={"enabled": True, "namespace": "me", "least_score": 0.0})
    published: list[object] = []

    def publish(settings: object, catalogue: object) -> tuple[list[object], list[object]]:
        published.append(catalogue)
        return [], []

    monkeypatch.setattr("flows.nightly.publish_night", publish)
    whole = ziplora("run", there.config, "--json")
    assert (whole.code, whole.document["offered"], whole.document["withheld"]) == (0, 5, None)
    server.repositories.clear()
    said = ziplora("run", there.config, "--json")
    assert (said.code, said.document["offered"], said.document["withheld"]) == (1, 1, "LISTING_SHRANK")
    assert len(published) == 1


def test_a_hub_that_goes_away_before_a_file_is_fetched_leaves_its_merges_for_the_next_night(
    place: Settle, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_pair, "retries", 0)
    there = _from_the_hub(place)

    def away(settings: Settings, base: Base) -> Worker:
        server.trouble = always("503")
        monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
        return Worker(settings, base)

    monkeypatch.setattr("flows.batch.worker_for", away)
    report = nightly(str(there.config))
    assert (report.merged, report.failed, report.postponed) == (0, {}, 1)
    server.trouble = nothing_wrong
    monkeypatch.setattr("flows.batch.worker_for", Worker)
    assert nightly(str(there.config)).merged == 1


def test_a_token_that_is_refused_is_found_before_the_night(
    place: Settle, server: HubServer, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _from_the_hub(place)
    monkeypatch.setenv("HF_TOKEN", "hf_EXPIRED")
    said = ziplora("check", there.config)
    assert (said.code, said.out.split()[0]) == (3, "AUTH")


def test_a_token_that_may_only_read_is_enough_for_a_night_that_publishes_nothing(
    place: Settle, server: HubServer, ziplora: Ziplora
) -> None:
    server.role = "read"
    there = _from_the_hub(place)
    assert ziplora("check", there.config).code == 0
    there.set(publish={"enabled": True, "namespace": "me"})
    said = ziplora("run", there.config)
    assert (said.code, said.err.split()[0]) == (3, "AUTH")
    assert "may only read" in said.err


def test_publishing_without_a_token_is_found_before_the_night(
    place: Settle, server: HubServer, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    there = place(publish={"enabled": True, "namespace": "me"})
    said = ziplora("run", there.config)
    assert (said.code, said.err.split()[0]) == (3, "AUTH")


def test_adapters_of_the_hub_are_in_a_shared_store_for_machines_without_them(
    place: Settle, server: HubServer, ziplora: Ziplora, tmp_path: Path
) -> None:
    there = _from_the_hub(place, store=f"file://{tmp_path}/shared")
    assert nightly(str(there.config)).merged == 1
    shutil.rmtree(there.folder / "store")
    at = ("--catalogue", there.catalogue)
    (merge_id,) = finished_merge_ids(open_catalogue(there.catalogue))
    asked = len(server.requests)
    said = ziplora("export", merge_id, "-o", tmp_path / "merged.safetensors", *at)
    assert said.code == 0, said.err
    assert len(server.requests) == asked

"""Policy, from the settings to the last copy: what is not merged at all, and what goes when somebody asks for it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from huggingface_hub import constants

from catalog import collection
from flows.nightly import nightly
from tests.catalog.hub_contents import TOKEN, HubServer
from tests.catalog.hub_server import serving

from .conftest import Settle, Ziplora
from .world import DIRECT

ROBOT = "me/robot-lora"


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Two subjects and a style on a Hub."""
    with serving() as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("catalog.story.LOST_BELOW", float("-inf"))  # this world is not trained
        for name in ("robot-lora", "fish-lora", "neon-lora"):
            running.add_folder(f"me/{name}", world / "adapters" / name)
        yield running


SOURCES = [
    {"repository": ROBOT, "role": "subject"},
    {"repository": "me/fish-lora", "role": "subject"},
    {"repository": "me/neon-lora", "role": "style"},
]
PAIRS = {"include": ["robot x neon", "fish x neon"]}
PUBLISHING = {"enabled": True, "namespace": "me", "least_score": 0.0}


def test_what_is_denied_is_not_merged_and_the_scan_says_why(place: Settle, server: HubServer, ziplora: Ziplora) -> None:
    there = place(sources=SOURCES, methods=DIRECT, policy={"denied": ["me/robot-*"]})
    found = {one["repository"]: one for one in ziplora("scan", there.config, "--json").document}
    assert (found[ROBOT]["status"], found[ROBOT]["reason"]["code"]) == ("restricted", "CONSENT")
    assert [one["subject"] for one in ziplora("plan", there.config, "--json").document["merges"]] == ["me/fish-lora"]
    there.set(sources=SOURCES, methods=DIRECT, policy={"denied_words": ["Robots"]})
    assert nightly(str(there.config)).refused == {"CONSENT": 1}
    there.set(sources=SOURCES, methods=DIRECT, policy={"denied_words": ["robot"], "trusted": ["me/*"]})
    assert nightly(str(there.config)).refused == {}


def test_nothing_of_a_source_is_left_after_a_takedown_and_no_night_takes_it_up_again(
    place: Settle, server: HubServer, ziplora: Ziplora, world: Path, tmp_path: Path
) -> None:
    shared = f"file://{tmp_path}/shared"
    there = place(pairs=PAIRS, methods=DIRECT, publish=PUBLISHING, store=shared)
    assert nightly(str(there.config)).published == 2
    at = ("--catalogue", there.catalogue)
    (published,) = (name for name in server.repositories if name.startswith("me/robot-neon"))
    stores = [there.folder / "store", tmp_path / "shared"]
    told = ziplora("takedown", "robot-lora", *at, "--json").document
    assert (told["publications"], len(told["merges"])) == ([published], 1)
    assert published in server.repositories
    assert [_files_of(store, told["merges"][0]) != [] for store in stores] == [True, True]

    done = ziplora("takedown", "robot-lora", "--send", *at)
    assert done.code == 0, done.err
    assert published not in server.repositories
    assert [_files_of(store, told["merges"][0]) for store in stores] == [[], []]
    assert "robot" not in (there.folder / "gallery" / "index.html").read_text()
    asked = ziplora(
        "query", "SELECT merge_id FROM finished_merges", "--snapshot", there.folder / "catalog.duckdb", "--json"
    )
    assert len(asked.document) == 1
    assert ziplora("takedown", "robot-lora", "--send", *at, "--json").document["files"] == []
    assert "Taken down, the repository robot-lora" in ziplora("why", "robot-lora", *at).out

    server.add_folder("thief/android-lora", world / "adapters" / "robot-lora")  # the same bytes
    shutil.rmtree(there.folder / "adapters" / "robot-lora")
    shutil.copytree(world / "later" / "tree-lora", there.folder / "adapters" / "robot-lora")  # other bytes
    sources = [*there.settings["sources"], {"repository": "thief/android-lora", "role": "subject"}]
    there.set(sources=sources, methods=DIRECT, publish=PUBLISHING, store=shared)
    report = nightly(str(there.config))
    assert report.refused == {"TAKEN_DOWN": 2}
    assert [name for name in server.repositories if "robot" in name] == [ROBOT]


def _files_of(store: Path, merge_id: str) -> list[Path]:
    return [path for path in store.rglob("*") if merge_id in str(path)]


def test_a_night_fills_a_collection_and_a_takedown_takes_one_merge_out_of_it(
    place: Settle, server: HubServer, ziplora: Ziplora, tmp_path: Path
) -> None:
    publishing = {**PUBLISHING, "collection": "of-{style}", "dataset": "merges"}
    there = place(pairs=PAIRS, methods=DIRECT, publish=publishing)
    assert nightly(str(there.config)).published == 2
    collected = server.repositories["me/of-neon"]
    assert len(collected.commits) == 1 + 2
    assert nightly(str(there.config)).published == 0
    at = ("--catalogue", there.catalogue)
    assert ziplora("verify", *at).out.count("VERIFIED") == 2
    assert ziplora("takedown", "robot-lora", "--send", *at).code == 0
    (commit,) = collected.commits
    assert "robot" not in str(collected.commits[commit])
    assert any(path.startswith("fish-neon") for path in collected.commits[commit])
    (tables,) = server.repositories["datasets/me/merges"].commits.values()
    with duckdb.connect() as connection:
        (tmp_path / "merges.parquet").write_bytes(tables["merges.parquet"])
        names = connection.execute("SELECT subject_name FROM read_parquet(?)", [str(tmp_path / "merges.parquet")])
        assert names.fetchall() == [("fish",)]
    assert ziplora("verify", *at).out.count("VERIFIED") == 1


def test_a_night_ends_its_publishing_when_the_one_collection_is_full(
    place: Settle, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(collection._MOST, "commits", 1)  # noqa: SLF001 - a few thousand in truth
    there = place(pairs=PAIRS, methods=DIRECT, publish={**PUBLISHING, "collection": "all"})
    report = nightly(str(there.config))
    assert (report.published, report.unpublished) == (0, {"REPOSITORY_FULL": 1})
    there.set(pairs=PAIRS, methods=DIRECT, publish={**PUBLISHING, "collection": "{style}"})
    assert nightly(str(there.config)).unpublished == {"REPOSITORY_FULL": 2}


def test_published_merges_are_verified(place: Settle, server: HubServer, ziplora: Ziplora) -> None:
    there = place(pairs=PAIRS, methods=DIRECT, publish=PUBLISHING)
    assert nightly(str(there.config)).published == 2
    at = ("--catalogue", there.catalogue)
    said = ziplora("verify", *at)
    assert (said.code, said.out.count("VERIFIED")) == (0, 2)
    repository = next(one for name, one in server.repositories.items() if name.startswith("me/robot-neon"))
    repository.add({**repository.commits[repository.head], "README.md": b"other words"})
    told = ziplora("verify", *at, "--json")
    codes = [[reason["code"] for reason in one["reasons"]] for one in told.document]
    assert (told.code, sorted(codes)) == (1, [[], ["PUBLICATION_DIFFERS"]])

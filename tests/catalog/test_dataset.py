"""The public part of a catalogue as a data set: nothing that is not for strangers, one commit, answers in SQL."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from huggingface_hub import DatasetCard, HfFileSystem
from sqlalchemy import Engine, update

from catalog import facts, record, schema
from catalog.dataset import publish_dataset
from catalog.dataset_card import TABLES, dataset_card
from catalog.errors import Refused
from catalog.hub import Hub
from catalog.publish import Published

from .hub_contents import TOKEN, HubServer
from .hub_server import serving
from .samples import DOG, INK, NEON, NIGHT, NOON, TEAPOT, adapter, done, merge, start

SET = "me/merged"
SECRET = "/home/studio/client-x"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def ready(catalogue: Engine) -> Engine:
    """A published merge, one that may be, and others that are nobody's business."""
    start(catalogue)
    commit = "a" * 40
    record.record_adapters(
        catalogue,
        [adapter(INK, "style", licence=None, facts={"folder": SECRET})],
        [
            facts.Alias("you/dog-lora", commit, "dog.safetensors", DOG, NOON),
            facts.Alias("neon-lora", "local", f"{SECRET}/neon.safetensors", NEON, NOON),
        ],
    )
    for pair, positions in {
        (DOG, NEON): {"clip_i": 0.2, "dino": 0.2},
        (TEAPOT, NEON): {"clip_i": 0.6, "dino": 0.8},
        (DOG, INK): {"clip_i": 0.9, "dino": 0.9},
    }.items():
        done(catalogue, merge(*pair), **positions)
    done(catalogue, merge(TEAPOT, NEON, "direct"), clip_i=0.1, dino=0.1)
    _published(catalogue, merge(DOG, NEON), "verified")
    done(catalogue, merge(TEAPOT, NEON, "ties"), clip_i=0.9, dino=0.9)
    _published(catalogue, merge(TEAPOT, NEON, "ties"), "withdrawn")
    reason = facts.Reason("RESTRICTED", f"{SECRET} may not be used.", "leave it out.")
    record.record_refusals(catalogue, [facts.Refusal(NIGHT, SECRET, "local", "x.safetensors", reason, NOON)])
    return catalogue


class _Files(HfFileSystem):
    """What `hf://` means, of this machine's Hub; DuckDB's own httpfs is a download, and knows the real one only."""

    def modified(self, *_: Any, **__: Any) -> datetime:
        return NOON


def _published(engine: Engine, merged: facts.Merge, status: facts.PublicationStatus) -> None:
    record.record_publication(engine, facts.Publication(merged.merge_id, "me/there", status, "b" * 40, NOON))


def _send(server: HubServer, engine: Engine, dry_run: bool = False, least_score: float = 0.5) -> Published:
    return publish_dataset(engine, Hub(server.endpoint), SET, private=True, least_score=least_score, dry_run=dry_run)


def _rows(server: HubServer, table: str, folder: Path) -> list[dict[str, Any]]:
    repository = server.repositories[f"datasets/{SET}"]
    file = folder / f"{table}.parquet"
    file.write_bytes(repository.commits[repository.head][file.name])
    with duckdb.connect() as connection:
        found = connection.execute("FROM read_parquet(?)", [str(file)])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_a_rehearsal_sends_nothing(server: HubServer, ready: Engine) -> None:
    planned = _send(server, ready, dry_run=True)
    assert set(planned.size_bytes) == {"README.md", *(f"{name}.parquet" for name in TABLES)}
    assert (planned.commit, server.requests) == (None, [])


def test_it_holds_what_is_published_or_may_be_and_no_more(server: HubServer, ready: Engine, tmp_path: Path) -> None:
    sent = _send(server, ready)
    repository = server.repositories[f"datasets/{SET}"]
    assert repository.private
    assert repository.head == sent.commit
    assert {row["merge_id"]: row["repository"] for row in _rows(server, "merges", tmp_path)} == {
        merge(TEAPOT, NEON).merge_id: None,
        merge(DOG, NEON).merge_id: "me/there",
    }
    adapters = {row["sha256"]: row for row in _rows(server, "adapters", tmp_path)}
    assert adapters.keys() == {DOG, TEAPOT, NEON}
    assert (adapters[DOG]["name"], adapters[DOG]["repository"]) == ("dog", "you/dog-lora")
    assert (adapters[NEON]["name"], adapters[NEON]["repository"], adapters[NEON]["file_name"]) == ("neon", None, None)
    assert len(_rows(server, "scores", tmp_path)) == 4
    for table in TABLES:
        assert "client-x" not in str(_rows(server, table, tmp_path))


def test_what_shows_only_one_adapter_is_not_in_it(server: HubServer, ready: Engine, tmp_path: Path) -> None:
    done(ready, merge(TEAPOT, NEON, "np-lora"), clip_i=0.9, dino=0.05)
    done(ready, merge(TEAPOT, NEON, "dare"), clip_i=0.2, dino=0.2)
    _send(server, ready, least_score=0.0)
    listed = {row["method"] for row in _rows(server, "merges", tmp_path) if row["subject"] == TEAPOT}
    assert "dare" in listed
    assert "np-lora" not in listed


def test_a_parent_that_is_restricted_by_now_takes_its_merges_along(
    server: HubServer, ready: Engine, tmp_path: Path
) -> None:
    with ready.begin() as connection:
        restricted = update(schema.Adapter).where(schema.Adapter.sha256 == DOG)
        connection.execute(restricted.values(status="restricted"))
    _send(server, ready)
    assert [row["subject"] for row in _rows(server, "merges", tmp_path)] == [TEAPOT]
    assert DOG not in {row["sha256"] for row in _rows(server, "adapters", tmp_path)}


def test_nothing_changed_is_no_commit_and_one_change_is_one(server: HubServer, ready: Engine, tmp_path: Path) -> None:
    first, second = _send(server, ready), _send(server, ready)
    assert (second.commit, second.was_there) == (first.commit, True)
    done(ready, merge(DOG, NEON, "dare"), clip_i=0.7, dino=0.7)
    third = _send(server, ready)
    assert list(server.repositories[f"datasets/{SET}"].commits)[1:] == [first.commit, third.commit]
    assert len(_rows(server, "merges", tmp_path)) == 3


def test_what_is_there_of_somebody_else_is_left_alone(server: HubServer, ready: Engine) -> None:
    server.add(f"datasets/{SET}", {"README.md": b"mine", "data.csv": b"1"}).private = True
    with pytest.raises(Refused, match="NAME_TAKEN"):
        _send(server, ready)
    server.repositories[f"datasets/{SET}"].add({".gitattributes": b""})
    server.repositories[f"datasets/{SET}"].private = False
    with pytest.raises(Refused, match="REPOSITORY_PUBLIC"):
        _send(server, ready)


def test_the_questions_on_the_card_are_answered_as_they_stand(server: HubServer, ready: Engine) -> None:
    _send(server, ready)
    card = dataset_card(SET)
    assert DatasetCard(card).data.to_dict()["configs"][0]["config_name"] == "merges"  # type: ignore[no-untyped-call]
    questions = re.findall(r"```sql\n(.*?)```", card, re.DOTALL)
    files = _Files(endpoint=server.endpoint, skip_instance_cache=True)
    with duckdb.connect() as connection:
        connection.register_filesystem(files)
        answers = [connection.execute(question).fetchall() for question in questions]
    assert [len(answer) for answer in answers] == [2, 1, 4, 4]
    assert answers[0][0][2:4] == ("ziplora", pytest.approx(2 * 0.6 * 0.8 / 1.4))
    assert ("dog", "subject", "ziplora", pytest.approx(0.2), "me/there", "b" * 40) in answers[2]

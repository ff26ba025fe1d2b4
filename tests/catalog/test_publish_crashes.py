"""Whatever step a publisher is killed at, the next one finishes what it began, and there is one commit in all."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from catalog import record, schema
from catalog.release import CARD, WEIGHTS

from .hub_contents import TOKEN, HubServer
from .hub_server import serving
from .publisher import release_called
from .samples import DOG, NEON, merge, result, rows, start

Publisher = Callable[[str, str, int], str]
"""Publishes the merge of a name, into a collection or `-`, killed before a step: what became of it."""
_NEVER = 0


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving() as running:
        yield running


@pytest.fixture
def catalogue(tmp_path: Path) -> Engine:
    engine = schema.open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    start(engine)
    return engine


@pytest.fixture
def publisher(server: HubServer, catalogue: Engine, tmp_path: Path) -> Iterator[Publisher]:
    command = [sys.executable, "-m", "tests.catalog.publisher", str(catalogue.url), server.endpoint, str(tmp_path)]
    environment = {**os.environ, "HF_TOKEN": TOKEN}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        send, answers = process.stdin, process.stdout

        def publish(name: str, collection: str, last: int) -> str:
            record.record_done(catalogue, merge(DOG, NEON, name), result())
            send.write(f"{name} {collection} {last}\n")
            return answers.readline().strip()

        yield publish
        send.close()


def _no_weights_without_card(server: HubServer) -> None:
    for repository in server.repositories.values():
        for files in repository.commits.values():
            folders = {path.removesuffix(WEIGHTS) for path in files if path.endswith(WEIGHTS)}
            assert {f"{folder}{CARD}" for folder in folders} <= set(files)
            assert not folders or CARD in files


def _crashes(publisher: Publisher, server: HubServer, catalogue: Engine, folder: Path, count: int) -> set[int]:
    """So many merges, each published by one that is killed at a step by chance, and then by one that is not.

    The first two are killed when the Hub has made the commit and nothing here knows of it yet.
    """
    chance = random.Random(count)
    for collection in ("-", "all"):
        publisher(f"first{collection}", collection, _NEVER)
    steps, answered = {}, {}
    for collection in ("-", "all"):
        _, _, steps[collection], answered[collection] = publisher(f"whole{collection}", collection, _NEVER).split()
    reached = set()
    for number in range(count):
        name, collection = f"method-{number}", ("-", "all")[number % 2]
        last = int(answered[collection]) if number < 2 else chance.randint(1, int(steps[collection]))
        reached.add(last)
        assert publisher(name, collection, last) == "killed"
        _no_weights_without_card(server)
        commit, was_there, *_ = publisher(name, collection, _NEVER).split()
        assert was_there == "True" or number >= 2
        assert publisher(name, collection, _NEVER).split()[:2] == [commit, "True"]
        merge_id = release_called(name, folder).merge_id
        place = "me/all" if collection == "all" else f"me/{release_called(name, folder).name}"
        holding = [
            files
            for files in server.repositories[place].commits.values()
            if any(merge_id.encode() in content for path, content in files.items() if path.endswith("provenance.json"))
        ]
        own = number // 2 + 3 if collection == "all" else 1
        assert len(server.repositories[place].commits) == 1 + own
        assert len(holding) == 1
    return reached


def _statuses(catalogue: Engine) -> set[str]:
    return {row.status for row in rows(catalogue, schema.Publication)}


def test_ten_crashes_leave_one_commit_each(
    publisher: Publisher, server: HubServer, catalogue: Engine, tmp_path: Path
) -> None:
    _crashes(publisher, server, catalogue, tmp_path, 10)
    assert _statuses(catalogue) == {"verified"}
    assert len(rows(catalogue, schema.Publication)) == 14


@pytest.mark.slow
def test_a_hundred_crashes_leave_one_commit_each(
    publisher: Publisher, server: HubServer, catalogue: Engine, tmp_path: Path
) -> None:
    reached = _crashes(publisher, server, catalogue, tmp_path, 100)
    assert len(reached) > 30
    assert _statuses(catalogue) == {"verified"}

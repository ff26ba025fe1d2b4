"""A night may be killed at any moment: what it acknowledged is there, once, and comes back from the store."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from catalog import schema
from catalog.rebuild import rebuild
from catalog.schema import open_catalogue
from catalog.sidecars import KeptMerge, kept_merges
from catalog.snapshot import ask
from tests.catalog.samples import rows
from tests.catalog.test_rebuild import ALL, FROM_FILES, export_at

from .recorder import ACKNOWLEDGED, record_a_night, settings_in


def _start(folder: Path) -> multiprocessing.process.BaseProcess:
    """A night in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.flows.recorder"])
    process = context.Process(target=record_a_night, args=(folder,))
    process.start()
    return process


def _check(folder: Path) -> int:
    """All that was acknowledged is there once, with all its scores; gives back how much that is."""
    acknowledged = (folder / ACKNOWLEDGED).read_text().split() if (folder / ACKNOWLEDGED).exists() else []
    assert len(acknowledged) == len(set(acknowledged))
    engine = open_catalogue(settings_in(folder).catalogue, migrate=True)
    done = {row.merge_id for row in rows(engine, schema.Merge) if row.status == "done"}
    scored = [row.merge_id for row in rows(engine, schema.Score)]
    engine.dispose()
    assert set(acknowledged) <= done
    assert {merge_id: scored.count(merge_id) for merge_id in set(scored)} == dict.fromkeys(done, 6)
    return len(acknowledged)


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_night_loses_nothing_that_it_acknowledged(tmp_path: Path, kills: int) -> None:
    chance = Random(kills)
    settings = settings_in(tmp_path)
    first = _start(tmp_path)
    first.join(60)
    assert first.exitcode == 0
    for _ in range(kills):
        process = _start(tmp_path)
        time.sleep(chance.uniform(0.0, 1.0))
        process.kill()
        process.join()
        if not process.exitcode:
            continue
        _check(tmp_path)
    last = _start(tmp_path)
    last.join(60)
    assert last.exitcode == 0

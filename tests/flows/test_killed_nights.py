"""A night may be killed at any moment: what it acknowledged is there, once, and comes back from the store."""

import json
import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import make_url

from catalog import schema
from catalog.rebuild import rebuild
from catalog.schema import open_catalogue
from tests.catalog.samples import rows
from tests.catalog.test_rebuild import ALL, FROM_FILES, export_at

from .recorder import ACKNOWLEDGED, record_a_night, settings_in

_CHECKED_EVERY = 50


def _start(folder: Path) -> BaseProcess:
    """A night in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.flows.recorder"])
    process = context.Process(target=record_a_night, args=(folder,))
    process.start()
    return process


def _finish(folder: Path) -> None:
    """A night that nobody kills."""
    night = _start(folder)
    night.join(60)
    assert night.exitcode == 0


def _check_rows(folder: Path) -> None:
    """All that was acknowledged is there once, and no finished merge lacks a score."""
    acknowledged = (folder / ACKNOWLEDGED).read_text().split()
    engine = open_catalogue(settings_in(folder).catalogue)
    done = {row.merge_id for row in rows(engine, schema.Merge) if row.status == "done"}
    scored = [row.merge_id for row in rows(engine, schema.Score)]
    engine.dispose()
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) <= done == set(scored)
    assert len(scored) == 6 * len(done)


def _from_files(lines: list[bytes]) -> list[bytes]:
    """Without merges that are not finished, which no file holds."""
    return [line for line in lines if not line.startswith(b'["merges"') or b'"done"' in line]


def _night_ids(lines: set[bytes]) -> set[str]:
    return {json.loads(line)[1] for line in lines if line.startswith(b'["nights"')}


def _check_rebuilt(folder: Path) -> None:
    """The same rows come back with the catalogue at hand, and without it from the store alone."""
    settings = settings_in(folder)
    url, path = settings.catalogue, Path(make_url(settings.catalogue).database or "")
    before = set(export_at(url, ALL).splitlines())
    assert rebuild(url, settings.store_folder).left_out == ()
    after = set(export_at(url, ALL).splitlines())
    # That a night began or ended may be known to the store alone, if it was killed in that moment.
    assert {line[:15] for line in after ^ before} <= {b'["nights", "202'}
    assert _night_ids(before) <= _night_ids(after)
    known = _from_files(export_at(url, FROM_FILES).splitlines())
    path.unlink()
    rebuild(url, settings.store_folder)
    assert export_at(url, FROM_FILES).splitlines() == known


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_night_loses_nothing_that_it_acknowledged(tmp_path: Path, kills: int) -> None:
    chance, killed = Random(kills), 0
    _finish(tmp_path)  # its process waited for all imports
    started = time.monotonic()
    _finish(tmp_path)
    longest = time.monotonic() - started
    while killed < kills:
        night = _start(tmp_path)
        time.sleep(chance.uniform(0.0, longest))
        night.kill()
        night.join()
        killed += night.exitcode != 0
        _check_rows(tmp_path)
        if night.exitcode and killed % _CHECKED_EVERY == 0:
            _finish(tmp_path)
            _check_rebuilt(tmp_path)
    _finish(tmp_path)
    _check_rows(tmp_path)
    _check_rebuilt(tmp_path)

"""Eight processes write and four read at once: nothing is lost, doubled or held up."""

import subprocess
import sys

import pytest
from sqlalchemy import Engine

from catalog import schema

from .samples import SCORERS, rows, start


def _begin(url: str, role: str, name: int, seconds: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.catalog.crowd", url, role, str(name), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _together(url: str, seconds: int) -> tuple[set[str], list[float]]:
    """The merges that eight writers were told are kept, and the longest answer of each of four readers."""
    readers = [_begin(url, "read", number, seconds) for number in range(4)]
    writers = [_begin(url, "write", number % 4, seconds) for number in range(8)]  # each merge is told by two of them
    ended = {process: process.communicate(timeout=seconds + 120) for process in (*readers, *writers)}
    assert [said for _, said in ended.values()] == [""] * 12
    assert [process.returncode for process in ended] == [0] * 12
    acknowledged = {line for writer in writers for line in ended[writer][0].split()}
    return acknowledged, [float(ended[reader][0]) for reader in readers]


def _check_rows(engine: Engine, acknowledged: set[str]) -> None:
    merges = rows(engine, schema.Merge)
    assert acknowledged
    assert {row.merge_id for row in merges} >= acknowledged
    assert len(merges) - len(acknowledged) <= 8  # what was written at the end, a merge a writer, and not told of
    scored = {row.merge_id for row in rows(engine, schema.Ranking)}
    assert acknowledged <= scored
    assert len(rows(engine, schema.Ranking)) == len(scored)
    assert len(rows(engine, schema.Summary)) == len(scored) * len(SCORERS)
    assert len(rows(engine, schema.Score)) == len(scored) * len(SCORERS) * 2


def test_a_crowd_loses_and_doubles_nothing(catalogue: Engine, url: str) -> None:
    start(catalogue)
    acknowledged, _ = _together(url, 2)
    _check_rows(catalogue, acknowledged)


@pytest.mark.slow
def test_in_two_minutes_no_reader_waits_for_a_second(catalogue: Engine, url: str) -> None:
    start(catalogue)
    acknowledged, longest = _together(url, 120)
    _check_rows(catalogue, acknowledged)
    assert max(longest) <= 1

"""The notebook, run from top to bottom without a browser."""

import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog import record
from catalog.notebook import app, histogram
from catalog.schema import open_catalogue
from catalog.snapshot import write_snapshot

from .gallery_world import fill
from .samples import NOON


def _shown(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Any]:
    """The text of every cell's output, and the names that the cells define."""
    monkeypatch.setattr(sys, "argv", ["notebook", "--snapshot", str(snapshot)])
    outputs: Sequence[Any]
    outputs, names = app.run()
    return [output.text for output in outputs if output is not None], names


def test_it_shows_the_best_merges_their_scores_and_the_pictures_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    world = fill(engine, tmp_path, subjects=3, styles=3)
    record.record_night_started(engine, "last", {"store": str(world.store)}, NOON + timedelta(days=1))
    write_snapshot(engine, tmp_path / "catalog.duckdb")
    texts, names = _shown(tmp_path / "catalog.duckdb", monkeypatch)
    shown = "\n".join(texts)
    ranked = re.search(r"(\d+) ranked merges", shown)
    assert ranked is not None
    (best, *_) = names["ranking"].value
    assert f"{best['score_01']:.2f}" in texts[-1]
    assert shown.count("<svg") == 2, "one drawing for each method"
    assert sum(map(int, re.findall(r"(\d+) merges, at most", shown))) == int(ranked[1])
    assert texts[-1].count("<img") >= 2
    assert "<script>document" not in shown


def test_an_empty_catalogue_has_a_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    write_snapshot(engine, tmp_path / "catalog.duckdb")
    texts, _ = _shown(tmp_path / "catalog.duckdb", monkeypatch)
    assert "0 ranked merges" in "\n".join(texts)


def test_a_method_is_text_whatever_it_is_called() -> None:
    assert "<b>&lt;b&gt;</b>" in histogram("<b>", {0: 2, 19: 1})

"""Another scorer sees the pictures that are kept: nothing is drawn, and no ranking mixes two scorers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from catalog import schema
from catalog.facts import STYLE_METRIC, metric_of
from catalog.queries import finished_merge_ids
from catalog.rankings import ranking_scorers
from catalog.schema import open_catalogue
from flows.nightly import nightly
from tests.catalog.samples import rows

from .conftest import Settle, Ziplora
from .world import DIRECT, SETTINGS, Place, settle

OTHER = {**SETTINGS["scorers"], "style": "encoders/clip"}


def _draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any) -> None:
        raise AssertionError("nobody needs the base model")

    monkeypatch.setattr("flows.worker.load_backbone", load)


def _scores(there: Place) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """All scores, by merge, scorer and picture, without their times."""
    engine = open_catalogue(there.catalogue)
    return {
        (row.merge_id, row.scorer_id, row.prompt, row.seed): (row.value, row.floor, row.ceiling)
        for row in rows(engine, schema.Score)
    }


def _pictures(scores: Iterable[tuple[Any, ...]]) -> dict[str, set[tuple[str, int]]]:
    """What was seen of each merge."""
    seen: dict[str, set[tuple[str, int]]] = {}
    for merge_id, _, prompt, seed in scores:
        seen.setdefault(merge_id, set()).add((prompt, seed))
    return seen


def test_a_new_scorer_sees_kept_pictures_as_a_night_would_have(
    place: Settle, world: Path, tmp_path: Path, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    previews = {**SETTINGS["previews"], "short_list": {"merges": 1, "seeds": [7]}}
    fresh = settle(tmp_path / "fresh", world, methods=DIRECT, previews=previews, scorers=OTHER)
    nightly(str(fresh.config))
    there = place(methods=DIRECT, previews=previews)
    nightly(str(there.config))
    before = _scores(there)
    catalogue = open_catalogue(there.catalogue)
    ranked_by = ranking_scorers(catalogue)
    there.set(methods=DIRECT, previews=previews, scorers=OTHER)
    _draws_nothing(monkeypatch)
    said = ziplora("rescore", there.config, "--json")
    assert (said.code, said.document) == (0, {"scored": 4, "before": 0, "failed": []})
    after, expected = _scores(there), _scores(fresh)
    assert before.items() <= after.items()
    new = {key: value for key, value in after.items() if key not in before}
    assert {metric_of(scorer) for _, scorer, _, _ in new} == {STYLE_METRIC}
    assert _pictures(new) == _pictures(before)
    alike = {merge_id for merge_id, seen in _pictures(before).items() if _pictures(expected)[merge_id] == seen}
    assert alike
    assert all(expected[key] == pytest.approx(value) for key, value in new.items() if key[0] in alike)
    assert ranking_scorers(catalogue)[0] == ranked_by[0]
    assert ranking_scorers(catalogue)[1] in {scorer for _, scorer, _, _ in new}
    assert ziplora("rescore", there.config, "--json").document == {"scored": 0, "before": 4, "failed": []}


def test_one_merge_without_pictures_stops_no_other_and_leaves_the_ranking(place: Settle, ziplora: Ziplora) -> None:
    there = place(methods=DIRECT)
    nightly(str(there.config))
    catalogue = open_catalogue(there.catalogue)
    ranked_by = ranking_scorers(catalogue)
    lost = min(finished_merge_ids(catalogue))
    (picture, *_) = [
        path
        for path in (there.folder / "store" / "merges" / lost / "previews").glob("*.png")
        if path.name != "sheet.png"
    ]
    kept = picture.read_bytes()
    picture.unlink()
    there.set(methods=DIRECT, scorers=OTHER)
    said = ziplora("rescore", there.config, "--json")
    assert (said.code, said.document["scored"]) == (1, 3)
    assert [(merge_id, reason["code"]) for merge_id, reason in said.document["failed"]] == [(lost, "PICTURES_GONE")]
    assert ranking_scorers(catalogue) == ranked_by  # the new scorer has not seen them all
    picture.write_bytes(kept)
    assert ziplora("rescore", there.config, "--json").document == {"scored": 1, "before": 3, "failed": []}
    assert ranking_scorers(catalogue) != ranked_by

"""The best merges get further pictures: once, from all that tonight wants, and nothing is counted twice."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from catalog import facts, record
from catalog.queries import finished_merge_ids, pictures_seen
from catalog.rankings import best_merges, ranking_scorers
from catalog.schema import Catalogue, open_catalogue
from catalog.snapshot import ask
from flows.nightly import nightly
from flows.plan import Job, Wishes, nothing_known, plan
from flows.settings import Pairs, parse_settings
from flows.short_list import rounds
from flows.worker import merge_of
from ziplora.failure import Failure

from .conftest import Settle
from .test_plan import ADAPTERS, BASE
from .world import DIRECT, MORE_PICTURES, ONE_PAIR, SETTINGS, Place

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def _seeds(there: Place) -> dict[str, set[int]]:
    """By merge, those of the pictures that were scored."""
    seen = pictures_seen(open_catalogue(there.catalogue))
    return {merge_id: {seed for _, seed in pictures} for merge_id, pictures in seen.items()}


def _draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any) -> None:
        raise AssertionError("nobody needs the base model")

    monkeypatch.setattr("flows.worker.load_backbone", load)


def test_the_best_merge_gets_more_pictures_and_is_counted_once(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, previews=MORE_PICTURES)
    report = nightly(str(there.config))
    assert (report.merged, report.postponed, report.failed) == (4, 0, {})
    catalogue = open_catalogue(there.catalogue)
    best = next(best_merges(catalogue, ranking_scorers(catalogue))).merge_id
    seeds = _seeds(there)
    assert seeds[best] == {0, 7, 8}
    more = [merge_id for merge_id, drawn in seeds.items() if drawn == {0, 7, 8}]
    assert 1 <= len(more) == report.short_listed < 4
    assert all(drawn == {0} for merge_id, drawn in seeds.items() if merge_id not in more)
    _draws_nothing(monkeypatch)
    again = nightly(str(there.config))
    assert (again.merged, again.finished_before, again.short_listed, again.failed) == (0, 4, 0, {})


def test_the_scores_of_a_short_listed_merge_are_one_set_and_its_page_shows_all_pictures(place: Settle) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=DIRECT, previews=MORE_PICTURES)
    assert nightly(str(there.config)).short_listed == 1
    counted = "SELECT count(*), count(DISTINCT seed), count(DISTINCT floor), count(DISTINCT ceiling) FROM scores"
    _, rows = ask(there.folder / "catalog.duckdb", f"{counted} GROUP BY scorer_id")
    assert rows == [(3, 3, 1, 1)] * 3
    (merge_id,) = finished_merge_ids(open_catalogue(there.catalogue))
    written = json.loads((there.folder / "store" / "merges" / merge_id / "scores.json").read_text())
    assert len({(row["scorer_id"], row["evidence_sha256"]) for row in written}) == 3
    assert len(written) == 9
    (page,) = (there.folder / "gallery" / "pairs").iterdir()
    sheet = page.read_text().partition("The merge</h2>")[2].partition("</table>")[0]
    assert sheet.count('<figure data-method="direct">\n<img') == 3


def test_merges_of_earlier_nights_are_on_the_list_if_tonight_wants_them(place: Settle) -> None:
    there = place(methods=DIRECT)
    assert nightly(str(there.config)).short_listed == 0
    before = _seeds(there)
    there.set(methods=DIRECT, previews=MORE_PICTURES, pairs=ONE_PAIR["pairs"])
    report = nightly(str(there.config))
    assert (report.merged, report.finished_before, report.short_listed, report.postponed) == (0, 1, 1, 0)
    changed = [merge_id for merge_id, seeds in _seeds(there).items() if seeds != before[merge_id]]
    assert len(changed) == 1


@pytest.mark.parametrize("limits", [{"seconds": 1e-6}, {"store_bytes": 1}])
def test_limits_hold_for_the_short_list_too(place: Settle, limits: dict[str, float]) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=DIRECT)
    nightly(str(there.config))
    there.set(pairs=ONE_PAIR["pairs"], methods=DIRECT, previews=MORE_PICTURES, limits=limits)
    report = nightly(str(there.config))
    assert (report.short_listed, report.postponed, report.failed) == (0, 0, {})
    assert list(_seeds(there).values()) == [{0}]


def test_a_picture_that_cannot_be_drawn_is_a_failure_of_three_nights_and_the_merge_stays_done(
    place: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_image: object, prompt: str, seed: int) -> None:
        if seed == 8:
            raise Failure("PREVIEW_INVALID", f"The picture of {prompt!r} is noise.", "look at it.")

    monkeypatch.setattr("ziplora.preview.refuse_invalid", refuse)
    there = place(pairs=ONE_PAIR["pairs"], methods=DIRECT, previews=MORE_PICTURES)
    for merged in (1, 0, 0):
        report = nightly(str(there.config))
        assert (report.merged, report.failed, report.postponed) == (merged, {"PREVIEW_INVALID": 1}, 0)
        assert report.short_listed == 0
    assert nightly(str(there.config)).failed == {}
    assert list(_seeds(there).values()) == [{0}]


def _score(catalogue: Catalogue, job: Job, position: float, seeds: Sequence[int]) -> None:
    merge_id = job.recipe.merge_id
    (prompt,) = job.prompts(("{subject} {style}",))
    scores = [
        facts.Score(merge_id, scorer, prompt, seed, position, 0.0, 1.0, NOON)
        for scorer in ("dino:x", "clip-i:x")
        for seed in seeds
    ]
    record.record_scores(catalogue, scores)


def test_a_merge_that_falls_back_lets_another_one_forward(tmp_path: Path) -> None:
    settings = parse_settings(yaml.safe_dump({**SETTINGS, "methods": DIRECT, "previews": MORE_PICTURES}), tmp_path)
    lucky, good, poor, unwanted = plan(settings, BASE, ADAPTERS, nothing_known, ()).jobs
    catalogue = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    record.record_night_started(catalogue, "a night", {}, NOON)
    for one in ADAPTERS:
        record.record_adapters(catalogue, [facts.Adapter(one.sha256, one.role, "usable", "mit", {}, NOON)])
    for job, position in ((lucky, 0.9), (good, 0.8), (poor, 0.1), (unwanted, 1.0)):
        record.record_done(catalogue, merge_of(job), facts.Result("a night", {}, 0.1, 1.0, NOON))
        _score(catalogue, job, position, (0,))
    others = settings.model_copy(update={"pairs": Pairs(exclude=("dog x wave",))})
    wishes = Wishes(others, BASE, ADAPTERS)
    listed = rounds(settings, catalogue, wishes)
    assert next(listed) == [lucky]
    _score(catalogue, lucky, 0.5, (0, 7, 8))
    assert next(listed) == [good]
    _score(catalogue, good, 0.7, (0, 7, 8))
    assert list(listed) == []
    assert list(rounds(settings, catalogue, wishes)) == []

"""The answers are those a person would work out by hand, from Python and from the snapshot alike."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import Engine

from catalog import facts, queries, rankings, record
from catalog.snapshot import write_snapshot

from .samples import (
    DIVERGED,
    DOG,
    INK,
    NEON,
    NIGHT,
    SCORERS,
    TEAPOT,
    adapter,
    done,
    merge,
    minutes,
    result,
    score,
    start,
)


@pytest.fixture
def ranked(catalogue: Engine) -> Engine:
    """Two pairs of the dog with two methods, one of the teapot, and merges that no ranking may show."""
    start(catalogue)
    done(catalogue, merge(DOG, NEON, "ziplora"), clip_i=0.5, dino=0.5)
    done(catalogue, merge(DOG, NEON, "direct"), clip_i=0.9, dino=0.1)
    done(catalogue, merge(DOG, INK, "ziplora"), clip_i=1.5, dino=0.75)  # cut to 1 and 0.75
    done(catalogue, merge(DOG, INK, "direct"), clip_i=0.8, dino=-0.5)  # worse than the base alone: 0
    done(catalogue, merge(TEAPOT, NEON, "ziplora"), clip_i=0.2, dino=0.2)
    done(catalogue, merge(DOG, NEON, "one scorer"), clip_i=1.0)
    done(catalogue, merge(DOG, NEON, "nan"), clip_i=1.0, dino=None)
    done(catalogue, merge(DOG, NEON, "unscored"))
    torn = done(catalogue, merge(DOG, NEON, "one picture missing"), clip_i=1.0, dino=1.0)
    record.record_scores(catalogue, [score(torn, "dino", 1.0), score(torn, "dino", None, seed=1)])
    failed = merge(DOG, NEON, "failed")
    record.record_failed(catalogue, failed, DIVERGED, NIGHT, minutes(1))
    record.record_scores(catalogue, [score(failed, "clip-i", 1.0), score(failed, "dino", 1.0)])
    return catalogue


def _short(answer: list[rankings.RankedMerge]) -> list[tuple[str, str, str, float]]:
    names = {DOG: "dog", TEAPOT: "teapot", NEON: "neon", INK: "ink"}
    return [(names[row.subject], names[row.style], row.method, round(row.score_01, 6)) for row in answer]


def test_the_best_styles_come_first_each_with_its_best_method(ranked: Engine) -> None:
    expected = [("dog", "ink", "ziplora", round(2 / (1 + 1 / 0.75), 6)), ("dog", "neon", "ziplora", 0.5)]
    assert _short(rankings.best_styles_for(ranked, DOG, SCORERS)) == expected
    assert _short(rankings.best_styles_for(ranked, DOG, SCORERS, limit=1)) == expected[:1]
    assert rankings.best_styles_for(ranked, "nobody", SCORERS) == []


def test_the_best_subjects_come_first(ranked: Engine) -> None:
    expected = [("dog", "neon", "ziplora", 0.5), ("teapot", "neon", "ziplora", 0.2)]
    assert _short(rankings.best_subjects_for(ranked, NEON, SCORERS)) == expected


def test_another_pair_of_scorers_is_another_ranking(ranked: Engine) -> None:
    before = rankings.best_subjects_for(ranked, NEON, SCORERS)
    seen = replace(score(merge(TEAPOT, NEON), "dino", 0.6), scorer_id="dino:2")
    record.record_scores(ranked, [seen])
    assert _short(rankings.best_subjects_for(ranked, NEON, ["clip-i", "dino:2"])) == [
        ("teapot", "neon", "ziplora", 0.3)
    ]
    assert rankings.best_subjects_for(ranked, NEON, SCORERS) == before
    record.record_scores(ranked, [replace(seen, value=None)])
    assert rankings.best_subjects_for(ranked, NEON, ["clip-i", "dino:2"]) == []
    assert rankings.best_subjects_for(ranked, NEON, [*SCORERS, *SCORERS]) == before
    for others in ([*SCORERS, "not run"], [*SCORERS, "dino:2"], ["clip-i"], []):
        assert rankings.best_subjects_for(ranked, NEON, others) == []


def test_each_pair_has_one_best_method(ranked: Engine) -> None:
    pairs = _short(rankings.best_method_per_pair(ranked, SCORERS))
    assert [(subject, style, method) for subject, style, method, _ in pairs] == [
        ("dog", "ink", "ziplora"),
        ("dog", "neon", "ziplora"),
        ("teapot", "neon", "ziplora"),
    ]


def test_pictures_count_by_their_mean(ranked: Engine) -> None:
    merged = merge(TEAPOT, INK)
    done(ranked, merged, clip_i=0.4, dino=0.5)
    record.record_scores(ranked, [score(merged, "clip-i", 0.4), score(merged, "clip-i", 0.6, seed=1)])
    (best, *_) = rankings.best_styles_for(ranked, TEAPOT, SCORERS)
    assert best.score_01 == pytest.approx(0.5)


def test_all_merges_that_can_be_ranked_come_best_first(ranked: Engine) -> None:
    every = _short(list(rankings.best_merges(ranked, SCORERS)))
    assert [row[:3] for row in every] == [
        ("dog", "ink", "ziplora"),
        ("dog", "neon", "ziplora"),
        ("teapot", "neon", "ziplora"),
        ("dog", "neon", "direct"),
        ("dog", "ink", "direct"),
    ]
    assert [row[3] for row in every] == sorted((row[3] for row in every), reverse=True)


def test_a_picture_is_seen_once_any_scorer_has_seen_it(ranked: Engine) -> None:
    more = merge(TEAPOT, INK)
    done(ranked, more, clip_i=0.4, dino=0.5)
    record.record_scores(ranked, [score(more, "dino", 0.5, seed=seed) for seed in (0, 7)])
    seen = queries.pictures_seen(ranked, [more.merge_id, merge(DOG, NEON, "unscored").merge_id])
    assert seen == {more.merge_id: {("a dog in neon style", 0), ("a dog in neon style", 7)}}
    assert seen.items() <= queries.pictures_seen(ranked).items()


def test_a_finished_merge_that_fails_again_and_again_is_left_until_somebody_asks(catalogue: Engine) -> None:
    start(catalogue)
    nights = (NIGHT, "2026-11-25", "2026-11-26")
    for number, night in enumerate(nights):
        record.record_failed(catalogue, merge(method="before"), DIVERGED, night, minutes(number))
    record.record_done(catalogue, merge(method="before"), result("2026-11-27", at=minutes(9)))
    record.record_done(catalogue, merge(method="after"), result())
    for number, night in enumerate(nights):
        assert queries.failing_finished_merge_ids(catalogue) == frozenset()
        record.record_failed(catalogue, merge(method="after"), DIVERGED, night, minutes(number + 1))
    assert queries.failing_finished_merge_ids(catalogue) == {merge(method="after").merge_id}
    record.record_request(catalogue, DOG, NEON, minutes(9))
    assert queries.failing_finished_merge_ids(catalogue) == frozenset()


def test_the_snapshot_gives_the_same_answers(ranked: Engine, tmp_path: Path) -> None:
    write_snapshot(ranked, tmp_path / "catalog.duckdb")
    asked = {
        "best_styles_for(?, ?)": (rankings.best_styles_for(ranked, DOG, SCORERS), [DOG, list(SCORERS)]),
        "best_subjects_for(?, ?)": (rankings.best_subjects_for(ranked, NEON, SCORERS), [NEON, list(SCORERS)]),
        "best_method_per_pair(?)": (rankings.best_method_per_pair(ranked, SCORERS), [list(SCORERS)]),
    }
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        for macro, (expected, parameters) in asked.items():
            answer = [rankings.RankedMerge(*row) for row in snapshot.execute(f"FROM {macro}", parameters).fetchall()]
            assert _short(answer) == _short(expected)
            assert [row.merge_id for row in answer] == [row.merge_id for row in expected]


def test_what_is_finished_is_not_planned_again(ranked: Engine) -> None:
    finished = queries.finished_merge_ids(ranked)
    assert len(finished) == 9
    assert merge(DOG, NEON, "failed").merge_id not in finished


def test_only_usable_adapters_of_the_role_are_offered(catalogue: Engine) -> None:
    places = [
        facts.Alias("me/dog", revision, "dog.safetensors", DOG, minutes(at)) for revision, at in (("a", 0), ("b", 5))
    ]
    record.record_adapters(catalogue, [adapter(DOG, "subject")], places)
    record.record_adapters(catalogue, [adapter(TEAPOT, "subject", status="restricted")])
    record.record_adapters(catalogue, [adapter(NEON, "style")])
    expected = queries.UsableAdapter(DOG, "subject", "apache-2.0", {"rank": 8}, tuple(reversed(places)))
    assert queries.usable_adapters(catalogue, "subject") == [expected]
    assert [found.sha256 for found in queries.usable_adapters(catalogue, "style")] == [NEON]


def test_the_troubles_of_a_night_are_told_in_order(catalogue: Engine) -> None:
    start(catalogue)
    reason = facts.Reason("PICKLE", "The file is a pickle.", "Ask for safetensors.")
    record.record_refusals(catalogue, [facts.Refusal(NIGHT, "me/old", "main", "old.bin", reason, minutes(0))])
    record.record_failed(catalogue, merge(), DIVERGED, NIGHT, minutes(1))
    record.record_failed(catalogue, merge(DOG, INK), DIVERGED, "2026-11-25", minutes(2))
    assert queries.failures_of(catalogue, NIGHT) == [
        queries.Trouble("refused", "me/old@main/old.bin", reason, minutes(0)),
        queries.Trouble("failed", merge().merge_id, DIVERGED, minutes(1)),
    ]


def test_a_ranking_of_one_moment_is_not_held_up_by_a_writer(ranked: Engine) -> None:
    with ranked.begin() as writer:
        writer.exec_driver_sql("UPDATE merges SET method = 'half done'")
        assert rankings.best_styles_for(ranked, DOG, SCORERS)[0].method == "ziplora"
        writer.rollback()


def test_what_changed_is_told_in_order_from_python_and_from_the_snapshot(catalogue: Engine, tmp_path: Path) -> None:
    start(catalogue)
    record.record_adapters(catalogue, [adapter(facts.key("new"), "subject", seen_at=minutes(1))])
    record.record_done(catalogue, merge(method="before"), result())
    record.record_done(catalogue, merge(), result(at=minutes(2)))
    record.record_failed(catalogue, merge(DOG, INK), DIVERGED, NIGHT, minutes(3))
    record.record_refusals(catalogue, [facts.Refusal(NIGHT, "me/old", "main", "old.bin", DIVERGED, minutes(4))])
    record.record_publication(catalogue, facts.Publication(merge().merge_id, "me/x", "staged", None, minutes(5)))
    expected = [
        ("found", facts.key("new")),
        ("merged", merge().merge_id),
        ("failed", merge(DOG, INK).merge_id),
        ("refused", "me/old@main/old.bin"),
        ("staged", merge().merge_id),
    ]
    assert [(one.word, one.item) for one in queries.changes_since(catalogue, minutes(1))] == expected
    write_snapshot(catalogue, tmp_path / "catalog.duckdb")
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        told = snapshot.execute("SELECT word, item FROM changes_since(?)", [minutes(1).replace(tzinfo=None)])
        assert told.fetchall() == expected

"""Merges are picked by all that people choose by, from Python and from the snapshot alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import Engine, delete, text

from catalog import facts, record, schema
from catalog.rankings import Picked, Wanted, pareto_front, pick
from catalog.snapshot import write_snapshot

from .samples import DOG, INK, NEON, NOON, SCORERS, TEAPOT, adapter, merge, minutes, result, rows, score, start

Asked = Callable[..., list[tuple[str, str, str]]]
_NAMES = {DOG: "dog", TEAPOT: "teapot", NEON: "neon", INK: "ink"}


def _scored(engine: Engine, merged: facts.Merge, dino: float, clip_i: float, clip_t: float, at: int = 0) -> None:
    record.record_done(engine, merged, result(at=minutes(at)))
    positions = {"dino": dino, "clip-i": clip_i, "clip-t": clip_t}
    record.record_scores(engine, [score(merged, scorer, position) for scorer, position in positions.items()])


@pytest.fixture
def scored(catalogue: Engine) -> Engine:
    """Five merges of adapters whose names, licences, ranks and sizes differ."""
    start(catalogue)
    known = ((DOG, "subject", "mit", 8), (TEAPOT, "subject", None, 64), (NEON, "style", "apache-2.0", 4))
    for sha256, role, licence, rank in (*known, (INK, "style", "cc-by-nc-4.0", 32)):
        described = {"rank": rank, "size_bytes": 100 * rank}
        alias = facts.Alias(f"me/{_NAMES[sha256]}-lora", "c0ffee", "a.safetensors", sha256, NOON)
        record.record_adapters(catalogue, [adapter(sha256, role, licence=licence, facts=described)], [alias])  # type: ignore[arg-type]
    _scored(catalogue, merge(DOG, NEON, "ziplora"), 0.8, 0.6, 0.5)
    _scored(catalogue, merge(DOG, NEON, "direct"), 0.5, 0.5, 0.9, at=1)
    _scored(catalogue, merge(DOG, INK, "ziplora"), 0.4, 0.9, 0.1, at=2)
    _scored(catalogue, merge(DOG, INK, "direct"), 0.4, 0.5, 0.1, at=3)
    _scored(catalogue, merge(TEAPOT, NEON, "ziplora"), -0.1, 1.2, 0.7, at=4)
    return catalogue


def _said(picked: list[Picked]) -> list[tuple[str, str, str]]:
    return [(one.subject_name, one.style_name, one.merge.method) for one in picked]


BEST, DIRECT = ("dog", "neon", "ziplora"), ("dog", "neon", "direct")
INKED, WORST, POT = ("dog", "ink", "ziplora"), ("dog", "ink", "direct"), ("teapot", "neon", "ziplora")


@pytest.mark.parametrize(
    ("wanted", "sql", "expected"),
    [
        (Wanted(), "TRUE", [BEST, INKED, DIRECT, WORST, POT]),
        (Wanted(subject=DOG, style=INK), "subject = 'dog' AND style = 'ink'", [INKED, WORST]),
        (Wanted(method="direct"), "method = 'direct'", [DIRECT, WORST]),
        (Wanted(licence="apache-2.0"), "licence = 'apache-2.0'", [BEST, DIRECT]),
        (Wanted(licence="gpl-3.0"), "licence = 'gpl-3.0'", []),
        (Wanted(least_score=0.5), "score_01 >= 0.5", [BEST, INKED, DIRECT]),
        (Wanted(least_subject=0.5), "subject_position >= 0.5", [BEST, DIRECT]),
        (Wanted(least_style=0.55), "style_position >= 0.55", [BEST, INKED, POT]),
        (Wanted(least_text=0.6), "text_position >= 0.6", [DIRECT, POT]),
        (Wanted(most_rank=12), "rank <= 12", [BEST, DIRECT]),
        (Wanted(most_bytes=4000), "size_bytes <= 4000", [BEST, INKED, DIRECT, WORST]),
        (Wanted(since=minutes(2)), f"finished_at >= '{minutes(2):%Y-%m-%d %H:%M:%S}'", [INKED, WORST, POT]),
        (Wanted(publishable=True), "publishable", [BEST, DIRECT]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_each_filter_keeps_what_is_wanted(
    scored: Engine, tmp_path: Path, wanted: Wanted, sql: str, expected: list[tuple[str, str, str]]
) -> None:
    for number, status in enumerate(("verified", "withdrawn")):
        gone = merge(DOG, INK, ("ziplora", "direct")[number])
        record.record_publication(scored, facts.Publication(gone.merge_id, "me/x", status, "abc", NOON))  # type: ignore[arg-type]
    assert _said(pick(scored, SCORERS, **wanted)) == expected
    assert _said(pick(scored, SCORERS, limit=1, **wanted)) == expected[:1]
    write_snapshot(scored, tmp_path / "catalog.duckdb")
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        best = f"SELECT subject, style, method FROM picks WHERE {sql} ORDER BY score_01 DESC, merge_id"
        assert snapshot.execute(best).fetchall() == expected


def test_what_people_choose_by_is_told(scored: Engine) -> None:
    (worst,) = pick(scored, SCORERS, subject=TEAPOT)
    assert (worst.subject_position, worst.style_position, worst.text_position) == pytest.approx((-0.1, 1.2, 0.7))
    assert (worst.merge.score_01, worst.rank, worst.size_bytes, worst.licence) == (0.0, 68, 6800, None)
    assert worst.finished_at == minutes(4)


def test_nothing_beats_what_is_on_the_front(scored: Engine, tmp_path: Path) -> None:
    assert _said(pareto_front(scored, SCORERS, subject=DOG)) == [BEST, INKED, DIRECT]
    twin = merge(DOG, INK, "twin")
    _scored(scored, twin, 0.4, 0.9, 0.1)  # as good as another in everything: neither beats the other
    front = pareto_front(scored, SCORERS, subject=DOG)
    assert len(front) == 4
    record.record_scores(scored, [replace(score(twin, "clip-t", None), scorer_id="clip-t")])
    assert _said(pareto_front(scored, SCORERS, subject=DOG)) == [BEST, INKED, DIRECT]
    write_snapshot(scored, tmp_path / "catalog.duckdb")
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        found = snapshot.execute("SELECT subject, style, method FROM pareto_front('dog')").fetchall()
    assert found == [BEST, INKED, DIRECT]


@pytest.mark.parametrize(("version", "newer"), [("0001", ("headers",)), ("0002", ())])
def test_an_upgrade_ranks_what_was_scored_before(
    scored: Engine, url: str, version: str, newer: tuple[str, ...]
) -> None:
    unplaced = merge(TEAPOT, INK)
    record.record_done(scored, unplaced, result())
    record.record_scores(scored, [score(unplaced, "dino", None), score(unplaced, "dino", 0.5, seed=1)])
    written = [rows(scored, table) for table in (schema.Summary, schema.Ranking)]
    with scored.begin() as connection:
        for name in ("batches", "rankings", "summaries", "tombstones", *newer):
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text("DROP INDEX merges_by_finish"))
        connection.execute(text("ALTER TABLE publications DROP COLUMN folder"))
        connection.execute(text("ALTER TABLE merges DROP COLUMN pair_seconds"))
        connection.execute(text("UPDATE catalogue_version SET version_num = :version"), {"version": version})
    schema.open_catalogue(url, migrate=True).dispose()
    for table, before in zip((schema.Summary, schema.Ranking), written, strict=True):
        assert [_rounded(row) for row in rows(scored, table)] == [_rounded(row) for row in before]


def _rounded(row: object) -> list[object]:
    return [round(value, 9) if isinstance(value, float) else value for value in row]  # type: ignore[attr-defined]


def test_a_merge_that_is_not_done_is_in_no_ranking(scored: Engine) -> None:
    failed = merge(TEAPOT, INK)
    record.record_plan(scored, [failed])
    record.record_scores(scored, [score(failed, scorer, 1.0) for scorer in SCORERS])
    assert len(pick(scored, SCORERS)) == 5
    with scored.begin() as connection:
        connection.execute(delete(schema.Ranking))
    assert pick(scored, SCORERS) == []

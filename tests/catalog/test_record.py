"""Each fact may be told twice, by many at once, and survives whoever told it."""

import math
import random
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Engine, Row
from sqlalchemy.exc import IntegrityError

from catalog import facts, queries, record, schema

from .samples import (
    DIVERGED,
    DOG,
    INK,
    NEON,
    NIGHT,
    NOON,
    SCORERS,
    adapter,
    merge,
    minutes,
    result,
    rows,
    score,
    start,
)

HOSTILE = (
    "Robert'); DROP TABLE merges;--",
    '<script>alert("x")</script>',
    "=cmd|' /C calc'!A0",
    "evil\u202egnp.exe",
    "nul\x00byte",
    "lone\ud800surrogate",
    "%s %(x)s :name {0} \\ \" '",
    "🐕" * 5_000,
    "",
)


def _merge_row(engine: Engine) -> Row[Any]:
    (row,) = rows(engine, schema.Merge)
    return row


def _fail(engine: Engine, *nights: str) -> None:
    for night in nights:
        record.record_failed(engine, merge(), DIVERGED, night, minutes(1))


def test_a_second_scan_changes_what_is_known_and_adds_no_row(catalogue: Engine) -> None:
    place = facts.Alias("me/dog", "main", "dog.safetensors", DOG, minutes(0))
    record.record_adapters(catalogue, [adapter(DOG, "subject")], [place, place])
    later = adapter(DOG, "subject", status="restricted", licence="cc-by-nd-4.0", seen_at=minutes(5))
    record.record_adapters(catalogue, [later], [replace(place, seen_at=minutes(5))])
    (seen,) = rows(catalogue, schema.Adapter)
    assert (seen.status, seen.licence, seen.first_seen_at) == ("restricted", "cc-by-nd-4.0", minutes(0))
    (alias,) = rows(catalogue, schema.Alias)
    assert seen.last_seen_at == alias.seen_at == minutes(5)


def test_a_file_that_changed_under_its_name_moves_the_alias(catalogue: Engine) -> None:
    place = facts.Alias("folder", "", "dog.safetensors", DOG, minutes(0))
    record.record_adapters(catalogue, [adapter(DOG, "subject")], [place])
    record.record_adapters(catalogue, [adapter(INK, "subject")], [replace(place, sha256=INK)])
    assert [alias.sha256 for alias in rows(catalogue, schema.Alias)] == [INK]


def test_a_file_is_known_by_its_place_to_the_reader_that_read_it(catalogue: Engine) -> None:
    sound = facts.Header("me/dog", "c0ffee", "dog.safetensors", DOG, {"ranks": [4]}, None, 1, NOON)
    broken = replace(sound, file_name="cat.safetensors", facts=None, reason=DIVERGED)
    record.record_headers(catalogue, [sound, broken, sound])
    ids = [sound.alias_id, broken.alias_id, "elsewhere"]
    assert queries.known_headers(catalogue, ids, 1) == {sound.alias_id: sound, broken.alias_id: broken}
    assert queries.known_headers(catalogue, ids, 2) == {}
    later = replace(broken, facts={"ranks": [8]}, reason=None, reader=2, read_at=minutes(1))
    record.record_headers(catalogue, [later])
    assert queries.known_headers(catalogue, ids, 2) == {later.alias_id: later}


def test_a_method_takes_what_its_pairs_took_with_pictures_and_scores(catalogue: Engine) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(DOG, NEON), replace(result(seconds=2.0), pair_seconds=10.0))
    record.record_done(catalogue, merge(DOG, INK), result(seconds=4.0))  # from before that was measured
    record.record_done(catalogue, merge(method="direct"), replace(result(seconds=0.0), pair_seconds=5.0))
    assert queries.seconds_by_method(catalogue) == {"ziplora": 7.0, "direct": 5.0}
    kept = queries.result_of(catalogue, merge(DOG, NEON).merge_id)
    assert kept is not None
    assert (kept.seconds, kept.pair_seconds) == (2.0, 10.0)


def test_the_last_finish_is_that_of_any_merge(catalogue: Engine) -> None:
    start(catalogue)
    assert queries.last_finish(catalogue) is None
    record.record_done(catalogue, merge(DOG, NEON), replace(result(), finished_at=minutes(2)))
    record.record_done(catalogue, merge(DOG, INK), replace(result(), finished_at=minutes(1)))
    assert queries.last_finish(catalogue) == minutes(2)


def test_the_first_result_of_a_merge_counts(catalogue: Engine) -> None:
    start(catalogue)
    assert record.record_done(catalogue, merge(), result(seconds=3.5))
    assert not record.record_done(catalogue, merge(), result(seconds=99.0))
    record.record_running(catalogue, merge(), NIGHT)
    record.record_skipped(catalogue, [(merge(), DIVERGED)])
    record.record_plan(catalogue, [merge()])
    _fail(catalogue, NIGHT)
    row = _merge_row(catalogue)
    assert (row.status, row.seconds, row.attempts, row.code) == ("done", 3.5, 0, None)
    assert (row.recipe, row.losses) == (merge().recipe, {"total": [1.0, 0.5]})


def test_a_failed_merge_may_be_done_later(catalogue: Engine) -> None:
    start(catalogue)
    _fail(catalogue, NIGHT)
    row = _merge_row(catalogue)
    assert (row.status, row.code, row.next_step) == ("failed", DIVERGED.code, DIVERGED.next_step)
    assert record.record_done(catalogue, merge(), result("2026-11-25"))
    row = _merge_row(catalogue)
    assert (row.status, row.attempts, row.code, row.night_id) == ("done", 0, None, "2026-11-25")
    assert [failure.night_id for failure in rows(catalogue, schema.Failure)] == [NIGHT]


def test_the_same_failure_told_twice_counts_once(catalogue: Engine) -> None:
    start(catalogue)
    _fail(catalogue, NIGHT, NIGHT, NIGHT, NIGHT)
    assert _merge_row(catalogue).attempts == 1


def test_three_failures_block_until_somebody_asks(catalogue: Engine) -> None:
    start(catalogue)
    _fail(catalogue, NIGHT, "2026-11-25", "2026-11-26")
    record.record_plan(catalogue, [merge()])
    record.record_running(catalogue, merge(), NIGHT)
    assert queries.blocked_merge_ids(catalogue) == {merge().merge_id}
    record.record_request(catalogue, DOG, NEON, minutes(0))
    assert (_merge_row(catalogue).status, _merge_row(catalogue).attempts) == ("failed", 0)
    _fail(catalogue, "2026-11-27")
    assert (_merge_row(catalogue).status, _merge_row(catalogue).attempts) == ("failed", 1)


def test_every_death_of_a_running_merge_counts_once_and_the_third_blocks_it(catalogue: Engine) -> None:
    start(catalogue)
    died = facts.Reason("WORKER_DIED", "The process that merged it ended.", "See its log.")
    for word in ("failed", "failed", "blocked"):
        record.record_running(catalogue, merge(), NIGHT)
        assert record.record_crashed(catalogue, merge().merge_id, died, NIGHT, minutes(1))
        assert not record.record_crashed(catalogue, merge().merge_id, died, NIGHT, minutes(2))
        assert (_merge_row(catalogue).status, _merge_row(catalogue).code) == (word, "WORKER_DIED")
    assert len(rows(catalogue, schema.Failure)) == 3


def test_a_merge_that_was_interrupted_is_planned_again_and_one_that_is_done_stays_done(catalogue: Engine) -> None:
    start(catalogue)
    record.record_running(catalogue, merge(), NIGHT)
    assert queries.running_merge_ids(catalogue) == {merge().merge_id}
    assert queries.running_merge_ids(catalogue, [DOG]) == set()
    record.record_interrupted(catalogue, merge().merge_id)
    assert (_merge_row(catalogue).status, _merge_row(catalogue).attempts) == ("planned", 0)
    record.record_done(catalogue, merge(), result())
    record.record_interrupted(catalogue, merge().merge_id)
    assert queries.finished_merge_ids(catalogue, [merge().merge_id]) == {merge().merge_id}
    assert queries.finished_merge_ids(catalogue, [DOG]) == set()


def test_a_skipped_merge_that_is_planned_again_forgets_why(catalogue: Engine) -> None:
    start(catalogue)
    reason = facts.Reason("CONSENT", "The owner did not agree.", "Ask the owner.")
    record.record_plan(catalogue, [merge()])
    record.record_skipped(catalogue, [(merge(), reason)])
    assert (_merge_row(catalogue).status, _merge_row(catalogue).code) == ("skipped", "CONSENT")
    record.record_plan(catalogue, [merge(), merge()])
    assert (_merge_row(catalogue).status, _merge_row(catalogue).code) == ("planned", None)
    record.record_running(catalogue, merge(), NIGHT)
    assert _merge_row(catalogue).status == "running"
    record.record_plan(catalogue, [])


def test_many_merges_are_skipped_together_and_what_is_finished_stays_so(catalogue: Engine) -> None:
    start(catalogue)
    first, second, finished = (merge(method=method) for method in ("ties", "dare", "direct"))
    record.record_done(catalogue, finished, result())
    record.record_plan(catalogue, [first])
    reasons = [facts.Reason("CONSENT", f"{who} did not agree.", "Ask.") for who in ("One", "Another", "A third")]
    record.record_skipped(catalogue, list(zip((first, second, finished), reasons, strict=True)))
    record.record_skipped(catalogue, [])
    known = {first.merge_id: reasons[0], second.merge_id: reasons[1]}
    assert queries.skips_of_subject(catalogue, first.subject) == known
    words = {**dict.fromkeys(known, "skipped"), finished.merge_id: "done"}
    assert queries.merges_of_subject(catalogue, first.subject) == words
    assert queries.merges_of_subject(catalogue, "somebody else") == {}


def test_a_request_stays_open_until_it_is_answered(catalogue: Engine) -> None:
    start(catalogue)
    record.record_request(catalogue, DOG, INK, minutes(1))
    record.record_request(catalogue, DOG, NEON, minutes(2))
    record.record_request(catalogue, DOG, INK, minutes(3))
    record.record_request_closed(catalogue, DOG, INK, minutes(2))  # an answer to the first of its two requests
    waiting = [queries.OpenRequest(DOG, NEON, minutes(2)), queries.OpenRequest(DOG, INK, minutes(3))]
    assert queries.open_requests(catalogue) == waiting
    record.record_request_closed(catalogue, DOG, NEON, minutes(4))
    assert queries.open_requests(catalogue) == waiting[1:]


def test_a_publication_never_goes_back(catalogue: Engine) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    staged = facts.Publication(merge().merge_id, "me/dog-neon", "staged", None, minutes(0))
    record.record_publication(catalogue, staged)
    record.record_publication(catalogue, replace(staged, status="committed", commit="abc"))
    record.record_publication(catalogue, staged)
    (row,) = rows(catalogue, schema.Publication)
    assert (row.status, row.commit) == ("committed", "abc")


def test_a_night_ends_with_its_summary(catalogue: Engine) -> None:
    record.record_night_started(catalogue, NIGHT, {"steps": 20}, minutes(0))
    record.record_night_started(catalogue, NIGHT, {"steps": 99}, minutes(9))
    record.record_night_finished(catalogue, NIGHT, {"merged": 3}, minutes(10))
    assert [tuple(row) for row in rows(catalogue, schema.Night)] == [
        (NIGHT, {"steps": 20}, minutes(0), minutes(10), {"merged": 3})
    ]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("column", ["value", "floor", "ceiling"])
def test_a_number_that_is_none_is_null_with_a_reason(column: str, number: float | None) -> None:
    broken = replace(score(merge(), "clip-i", 0.5), **{column: number})  # type: ignore[arg-type]
    assert broken.position is None
    assert str(broken.unranked_because).startswith(f"The {column} is ")


def test_nan_is_stored_as_null_and_a_later_look_counts(catalogue: Engine) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), replace(result(), movement=math.nan, losses={"total": [1.0, math.nan]}))
    good = score(merge(), "clip-i", 0.5)
    record.record_scores(catalogue, [replace(good, value=math.nan), replace(good, seed=2**40)])
    assert (_merge_row(catalogue).movement, _merge_row(catalogue).losses) == (None, {"total": [1.0, None]})
    by_seed = {row.seed: row for row in rows(catalogue, schema.Score)}
    assert (by_seed[0].value, by_seed[0].position, by_seed[0].reason) == (None, None, "The value is nan.")
    assert (by_seed[2**40].position, by_seed[2**40].reason) == (0.5, None)
    record.record_scores(catalogue, [good, replace(good, seed=2**40)])
    assert [row.position for row in rows(catalogue, schema.Score)] == [0.5, 0.5]


def test_a_later_look_takes_the_place_of_all_that_the_same_scorer_saw(catalogue: Engine) -> None:
    start(catalogue)
    for merged in (merge(), merge(method="direct")):
        record.record_done(catalogue, merged, result())
        record.record_scores(catalogue, [score(merged, scorer, 0.5, seed) for scorer in SCORERS for seed in (0, 1)])
    record.record_scores(catalogue, [replace(score(merge(), "dino", 0.5, seed), floor=12.0) for seed in (1, 2, 3)])
    found = {(row.merge_id, row.scorer_id, row.seed): row.floor for row in rows(catalogue, schema.Score)}
    looked_at = {key: floor for key, floor in found.items() if key[:2] == (merge().merge_id, "dino")}
    assert {seed: floor for (*_, seed), floor in looked_at.items()} == {1: 12.0, 2: 12.0, 3: 12.0}
    assert len(found) - len(looked_at) == 6


def test_a_ceiling_at_the_floor_places_nothing() -> None:
    flat = replace(score(merge(), "dino", 0.5), ceiling=10.0)
    assert flat.position is None
    assert flat.unranked_because == "The ceiling 10 is not above the floor 10."


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_a_name(catalogue: Engine, name: str) -> None:
    start(catalogue)
    place = facts.Alias(name, name, name, DOG, minutes(0))
    record.record_adapters(catalogue, [adapter(DOG, "subject", facts={name: [name]}, licence=name)], [place, place])
    refusal = facts.Refusal(NIGHT, name, name, name, facts.Reason("BAD", name, name), minutes(0))
    record.record_refusals(catalogue, [refusal])
    record.record_refusals(catalogue, [refusal])
    readable = name.replace("\x00", "\ufffd").replace("\ud800", "?")
    dog = next(found for found in queries.usable_adapters(catalogue, "subject") if found.sha256 == DOG)
    assert (dog.licence, dog.facts, dog.aliases[0].repository) == (readable, {readable: [readable]}, readable)
    (trouble,) = queries.failures_of(catalogue, NIGHT)
    assert (trouble.item, trouble.reason.fact) == (f"{readable}@{readable}/{readable}", readable)


def test_a_merge_of_unknown_adapters_is_our_own_mistake(catalogue: Engine) -> None:
    with pytest.raises(IntegrityError):
        record.record_plan(catalogue, [merge()])


def _writer(url: str, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.catalog.writer", url, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_many_writers_lose_no_row(catalogue: Engine, url: str) -> None:
    start(catalogue)
    writers = [_writer(url, str(number % 3), 40) for number in range(6)]  # each merge is told by two of them
    acknowledged = {line.strip() for writer in writers for line in writer.communicate(timeout=50)[0].splitlines()}
    assert [writer.returncode for writer in writers] == [0] * 6
    written = rows(catalogue, schema.Merge)
    assert len(acknowledged) == 120
    assert {row.merge_id for row in written} == acknowledged
    assert {row.attempts for row in written} == {1}
    assert len(rows(catalogue, schema.Failure)) == 120


def test_a_killed_writer_loses_nothing_that_it_acknowledged(catalogue: Engine, url: str) -> None:
    start(catalogue)
    chance = random.Random(6)
    for name in ("one", "two"):
        with _writer(url, name, 100_000) as writer:
            assert writer.stdout
            acknowledged = {line.strip() for line in islice(writer.stdout, chance.randint(5, 60))}
            writer.send_signal(signal.SIGKILL)
            acknowledged |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        kept = {row.merge_id: row for row in rows(catalogue, schema.Merge)}
        assert acknowledged <= set(kept)
        assert {row.attempts for row in kept.values()} == {1}  # a merge and its failure come together or not at all
        assert {row.merge_id for row in rows(catalogue, schema.Failure)} == set(kept)

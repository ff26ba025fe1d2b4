"""What people ask of a catalogue by name: the best merges, the story of an item, a night in numbers."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from catalog import facts, rankings, record
from catalog.errors import CatalogueError
from catalog.names import adapter_names, find_adapter, find_merge
from catalog.story import latest_night, night_summary, score_01, scores_by_merge, story_of

from .samples import DIVERGED, DOG, INK, NEON, NIGHT, NOON, SCORERS, TEAPOT, adapter, done, merge, minutes, score, start

LATER_DOG = facts.key("a later dog")


def _named(engine: Engine, repository: str, sha256: str, role: facts.Role, licence: str = "mit") -> None:
    alias = facts.Alias(repository, "c0ffee", "pytorch_lora_weights.safetensors", sha256, NOON)
    record.record_adapters(engine, [adapter(sha256, role, licence=licence)], [alias])


@pytest.fixture
def named(catalogue: Engine) -> Engine:
    """Two pairs of the dog and one of the teapot, with names and licences."""
    start(catalogue)
    _named(catalogue, "me/dog-lora", DOG, "subject")
    _named(catalogue, "me/teapot-lora", TEAPOT, "subject", "cc-by-nc-4.0")
    _named(catalogue, "you/Neon-lora", NEON, "style", "apache-2.0")
    _named(catalogue, "you/ink", INK, "style", "other")
    done(catalogue, merge(DOG, NEON, "ziplora"), clip_i=0.8, dino=0.8)
    done(catalogue, merge(DOG, NEON, "direct"), clip_i=0.9, dino=0.1)
    done(catalogue, merge(DOG, INK, "ziplora"), clip_i=0.6, dino=0.6)
    done(catalogue, merge(TEAPOT, NEON, "ziplora"), clip_i=0.4, dino=0.4)
    return catalogue


@pytest.mark.parametrize("said", ["me/dog-lora", "dog-lora", "dog", "DOG", DOG, DOG[:4], DOG[:9].upper()])
def test_an_adapter_has_many_names(named: Engine, said: str) -> None:
    assert find_adapter(named, said) == DOG


@pytest.mark.parametrize("said", ["", "do", "g", "%", "____", "dog_lora", DOG[:3], "nobody", "me/", "' OR 1=1 --"])
def test_a_name_that_nothing_has_is_an_error(named: Engine, said: str) -> None:
    with pytest.raises(CatalogueError, match="NAME_UNKNOWN"):
        find_adapter(named, said)


def test_a_name_that_two_have_is_not_guessed(named: Engine) -> None:
    _named(named, "you/dog", LATER_DOG, "subject")
    with pytest.raises(CatalogueError, match="NAME_AMBIGUOUS") as caught:
        find_adapter(named, "dog")
    assert DOG[:12] in str(caught.value)
    assert LATER_DOG[:12] in str(caught.value)
    assert find_adapter(named, "you/dog") == LATER_DOG
    with pytest.raises(CatalogueError, match="No style is called"):
        find_adapter(named, "dog", "style")


def test_a_merge_is_meant_by_the_beginning_of_its_id(named: Engine) -> None:
    merge_id = merge().merge_id
    assert find_merge(named, merge_id[:8]) == find_merge(named, merge_id.upper()) == merge_id
    for said in ("", merge_id[:3], "zzzz", "____"):
        with pytest.raises(CatalogueError, match="NAME_UNKNOWN"):
            find_merge(named, said)


def test_adapters_are_called_by_the_last_part_of_where_they_were_seen(named: Engine) -> None:
    record.record_adapters(named, [adapter(LATER_DOG, "subject")])
    assert adapter_names(named) == {
        DOG: "dog",
        TEAPOT: "teapot",
        NEON: "Neon",
        INK: "ink",
        LATER_DOG: LATER_DOG[:12],
    }


def test_the_best_merges_are_picked_by_what_they_have_to_be(named: Engine) -> None:
    def picked(**filters: object) -> list[tuple[str, str, str, str | None, float]]:
        found = rankings.pick(named, SCORERS, **filters)  # type: ignore[arg-type]
        return [
            (one.subject_name, one.style_name, one.merge.method, one.licence, round(one.merge.score_01, 3))
            for one in found
        ]

    best = ("dog", "Neon", "ziplora", "apache-2.0", 0.8)
    others = [
        ("dog", "ink", "ziplora", None, 0.6),
        ("teapot", "Neon", "ziplora", "cc-by-nc-4.0", 0.4),
        ("dog", "Neon", "direct", "apache-2.0", 0.18),
    ]
    assert picked() == [best, *others]
    assert picked(limit=1) == [best]
    assert picked(subject=TEAPOT) == [others[1]]
    assert picked(style=INK) == [others[0]]
    assert picked(method="direct") == [others[2]]
    assert picked(licence="apache-2.0") == [best, others[2]]
    assert picked(licence="cc-by-nc-4.0") == [others[1]]
    assert picked(licence="mit") == []
    assert picked(least_score=0.5) == [best, others[0]]


def test_a_ranking_is_by_the_scorers_that_most_merges_have(named: Engine) -> None:
    assert rankings.ranking_scorers(named) == ("dino", "clip-i")
    record.record_scores(named, [replace(score(merge(), "dino", 1.0), scorer_id="dino:other")])
    record.record_scores(named, [replace(score(merge(), "clip-t", 1.0), scorer_id="clip-t")])
    assert rankings.ranking_scorers(named) == ("dino", "clip-i")


def test_an_empty_catalogue_ranks_nothing(catalogue: Engine) -> None:
    assert rankings.ranking_scorers(catalogue) == ()
    assert rankings.pick(catalogue, ()) == []
    assert latest_night(catalogue) is None


def test_the_scores_of_a_merge_are_those_of_the_latest_scorers(named: Engine) -> None:
    again = [replace(score(merge(), "dino:new", 0.5, seed), scored_at=minutes(9)) for seed in (0, 1)]
    record.record_scores(named, again)
    style, subject = scores_by_merge(named)[merge().merge_id]
    assert (style.scorer_id, subject.scorer_id, subject.pictures) == ("clip-i", "dino:new", 2)
    assert (subject.value, subject.floor, subject.ceiling, subject.position) == (15, 10, 20, 0.5)
    assert score_01((style, subject)) == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    record.record_scores(named, [replace(again[0], value=None)])
    style, subject = scores_by_merge(named, merge().merge_id)[merge().merge_id]
    assert (subject.position, subject.reason) == (None, "The value is missing.")
    assert score_01((style, subject)) is None


def test_the_story_of_a_merge_is_told_in_order(named: Engine) -> None:
    told = merge(TEAPOT, INK)
    record.record_failed(named, told, DIVERGED, NIGHT, minutes(1))
    story = story_of(named, told.merge_id[:10])
    assert (story.kind, story.name, story.status) == ("merge", "teapot × ink · ziplora", "failed")
    assert story.facts["code"] == "MERGE_DIVERGED"
    record.record_done(named, told, facts.Result(NIGHT, {}, 0.25, 3.5, minutes(2)))
    record.record_publication(named, facts.Publication(told.merge_id, "me/x", "verified", "abc", minutes(3)))
    assert [event.sentence for event in story_of(named, told.merge_id).events] == [
        "Failed: MERGE_DIVERGED. The loss was NaN at step 12. Next: Lower the learning rate.",
        "Merged in 3.5 s; the coefficients moved by 0.25.",
        "me/x: verified abc.",
    ]


@pytest.mark.parametrize(("metric", "code"), [("dino", "SUBJECT_LOST"), ("clip-i", "STYLE_LOST")])
def test_a_merge_in_which_one_side_vanished_is_flagged(named: Engine, metric: str, code: str) -> None:
    assert "flag" not in story_of(named, merge().merge_id).facts
    record.record_scores(named, [replace(score(merge(), f"{metric}:new", 0.05, 0), scored_at=minutes(9))])
    assert story_of(named, merge().merge_id).facts["flag"] == code


def test_a_merge_outlives_its_sources_and_says_that_they_are_gone(named: Engine) -> None:
    assert "sources_gone" not in story_of(named, merge().merge_id).facts
    record.record_gone(named, DOG)
    story = story_of(named, merge().merge_id)
    assert (story.status, story.facts["sources_gone"]) == ("done", ["dog"])


def test_the_story_of_an_adapter_knows_its_merges_and_refusals(named: Engine) -> None:
    reason = facts.Reason("NON_FINITE", "12 values are NaN.", "ask the author.")
    record.record_refusals(named, [facts.Refusal(NIGHT, "me/dog-lora", "old", "a.safetensors", reason, minutes(1))])
    story = story_of(named, "dog")
    assert (story.kind, story.item, story.status, story.facts["licence"]) == ("adapter", DOG, "usable", "mit")
    told = " ".join(event.sentence for event in story.events)
    assert "Seen as me/dog-lora@c0ffee" in told
    assert "Refused me/dog-lora: NON_FINITE" in told
    assert "3 merges are done." in told


@pytest.mark.parametrize("said", ["me/broken", "broken"])
def test_a_file_that_was_only_ever_refused_has_a_story_too(named: Engine, said: str) -> None:
    reason = facts.Reason("FILE_TRUNCATED", "Expected 9 bytes, have 3.", "download it again.")
    record.record_refusals(named, [facts.Refusal(NIGHT, "me/broken", "main", "a.safetensors", reason, NOON)])
    record.record_refusals(named, [facts.Refusal(NIGHT, "me/other", "main", "a.safetensors", reason, NOON)])
    story = story_of(named, said)
    assert (story.kind, story.item) == ("refused file", "me/broken")
    assert [event.sentence for event in story.events] == [
        "Refused me/broken: FILE_TRUNCATED. Expected 9 bytes, have 3. Next: download it again."
    ]
    with pytest.raises(CatalogueError, match="NAME_UNKNOWN"):
        story_of(named, "nothing")


def test_a_night_is_counted_by_code(named: Engine) -> None:
    for number, code in enumerate(("B", "A", "B")):
        reason = facts.Reason(code, "It is broken.", "mend it.")
        record.record_refusals(named, [facts.Refusal("2026-11-25", f"me/{number}", "main", "a", reason, NOON)])
    record.record_failed(named, merge(TEAPOT, INK), DIVERGED, "2026-11-25", NOON)
    record.record_night_started(named, "2026-11-28", {}, minutes(1))
    night = night_summary(named, "2026-11-25")
    assert list(night.refused.items()) == [("B", 2), ("A", 1)]
    assert (night.done, night.failed) == (0, {"MERGE_DIVERGED": 1})
    assert (night_summary(named, NIGHT).done, night_summary(named, NIGHT).merge_seconds) == (4, 14.0)
    assert latest_night(named) == "2026-11-28"
    with pytest.raises(CatalogueError, match="NIGHT_UNKNOWN"):
        night_summary(named, "never")


@pytest.mark.parametrize("said", ["dog x neon", "me/dog-lora × you/Neon-lora", f"{DOG[:8]} x {NEON[:8]}"])
def test_a_pair_tells_who_asked_and_what_became_of_each_merge(named: Engine, said: str) -> None:
    record.record_request(named, DOG, NEON, minutes(-5))
    record.record_request_closed(named, DOG, NEON, minutes(9))
    record.record_skipped(named, [(merge(DOG, NEON, "ties"), DIVERGED)])
    story = story_of(named, said)
    assert (story.kind, story.name, story.status) == ("pair", "dog × Neon", "done (2), skipped (1)")
    assert story.facts[f"ties {merge(DOG, NEON, 'ties').merge_id[:12]}"].startswith("skipped: MERGE_DIVERGED. ")
    sentences = [event.sentence for event in story.events]
    assert (sentences[0], sentences[-1]) == ("Asked for.", "All its merges are done.")
    assert {sentence.partition(":")[0] for sentence in sentences[1:-1]} == {"direct", "ziplora"}


def test_a_pair_that_nobody_wanted_has_no_story_yet(named: Engine) -> None:
    story = story_of(named, "teapot x ink")
    assert (story.status, story.facts, story.events) == ("not planned", {}, ())
    with pytest.raises(CatalogueError, match="NAME_UNKNOWN: No style"):
        story_of(named, "dog x nobody")


@pytest.mark.parametrize("said", ["me/dog-neon-1234", "dog-neon-1234"])
def test_a_published_repository_tells_the_story_of_its_merge(named: Engine, said: str) -> None:
    merge_id = merge(DOG, NEON, "direct").merge_id
    record.record_publication(named, facts.Publication(merge_id, "me/dog-neon-1234", "committed", "c0ffee", minutes(3)))
    story = story_of(named, said)
    assert (story.kind, story.item) == ("merge", merge_id)
    assert "me/dog-neon-1234: committed c0ffee." in [event.sentence for event in story.events]

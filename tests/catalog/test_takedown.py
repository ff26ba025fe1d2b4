"""A source that is taken down is gone from the Hub, from the rankings and from every later night."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from catalog import facts, record, schema
from catalog.errors import CatalogueError, Refused
from catalog.hub import Hub
from catalog.publish import Policy, publish
from catalog.queries import finished_merge_ids, open_requests
from catalog.rankings import pick
from catalog.takedown import reach_of, tombstones, withdraw

from .hub_contents import TOKEN, HubServer
from .hub_server import serving
from .releases import release_of
from .samples import DOG, INK, NEON, NOON, SCORERS, TEAPOT, done, merge, result, rows, start

WHY = "its author asked for it"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def full(catalogue: Engine) -> Engine:
    """A catalogue of four merges; the dog was seen in two repositories."""
    start(catalogue)
    aliases = [facts.Alias(f"{owner}/dog-lora", "a" * 40, "dog.safetensors", DOG, NOON) for owner in ("you", "thief")]
    record.record_adapters(catalogue, [], aliases)
    for subject in (DOG, TEAPOT):
        for style in (NEON, INK):
            done(catalogue, merge(subject, style), dino=0.5, clip_i=0.5)
    return catalogue


def take_down(catalogue: Engine, source: str) -> None:
    reach = reach_of(catalogue, source, WHY)
    record.record_tombstones(catalogue, reach.tombstones, reach.adapters)


def test_a_repository_reaches_its_bytes_and_all_that_was_made_of_them(full: Engine) -> None:
    reach = reach_of(full, "You/Dog-LoRA", WHY)
    assert [(one.kind, one.name) for one in reach.tombstones] == [("repository", "You/Dog-LoRA"), ("adapter", DOG)]
    assert set(reach.recipes) == {merge(DOG, NEON).merge_id, merge(DOG, INK).merge_id}
    assert reach_of(full, DOG[:12], WHY).adapters == (DOG,)
    with pytest.raises(CatalogueError, match="NAME_UNKNOWN"):
        reach_of(full, "nobody", WHY)


def test_nothing_of_it_is_ranked_and_the_rest_stays(full: Engine) -> None:
    record.record_request(full, DOG, NEON, NOON)
    take_down(full, "you/dog-lora")
    assert {one.merge.subject for one in pick(full, SCORERS)} == {TEAPOT}
    assert finished_merge_ids(full) == {merge(TEAPOT, NEON).merge_id, merge(TEAPOT, INK).merge_id}
    assert open_requests(full) == []
    taken = [row for row in rows(full, schema.Merge) if row.subject == DOG]
    assert {(row.status, row.code) for row in taken} == {("skipped", "TAKEN_DOWN")}
    assert {row.status for row in rows(full, schema.Adapter) if row.sha256 == DOG} == {"restricted"}


def test_a_worker_that_is_at_it_still_does_not_bring_it_back(full: Engine) -> None:
    take_down(full, "you/dog-lora")
    record.record_plan(full, [merge(DOG, NEON)])
    record.record_running(full, merge(DOG, NEON), "2026-11-25")
    assert not record.record_done(full, merge(DOG, NEON), result())
    assert merge(DOG, NEON).merge_id not in finished_merge_ids(full)


def test_tombstones_know_bytes_and_repositories_whatever_their_letters(full: Engine) -> None:
    take_down(full, "You/Dog-lora")
    take_down(full, "you/dog-lora")
    assert tombstones(full) == {"you/dog-lora", DOG}
    assert len(rows(full, schema.Tombstone)) == 2


def test_a_repository_that_nobody_saw_is_taken_down_ahead_of_time(full: Engine) -> None:
    take_down(full, "you/cat-lora")
    assert tombstones(full) == {"you/cat-lora"}


def test_a_publication_goes_and_a_second_time_nothing_happens(full: Engine, server: HubServer, tmp_path: Path) -> None:
    hub = Hub(server.endpoint)
    sent = publish(release_of(tmp_path), Policy("me"), hub, full, dry_run=False)
    (publication,) = reach_of(full, "you/dog-lora", WHY).publications
    withdraw(hub, full, publication)
    assert sent.repository not in server.repositories
    assert [row.status for row in rows(full, schema.Publication)] == ["withdrawn"]
    withdraw(hub, full, publication)
    assert reach_of(full, "you/dog-lora", WHY).publications == ()


def test_a_repository_that_holds_something_else_by_now_is_left_alone(
    full: Engine, server: HubServer, tmp_path: Path
) -> None:
    hub = Hub(server.endpoint)
    sent = publish(release_of(tmp_path), Policy("me"), hub, full, dry_run=False)
    server.repositories[sent.repository].add({"README.md": b"my own"})
    (publication,) = reach_of(full, "you/dog-lora", WHY).publications
    with pytest.raises(Refused, match="NAME_TAKEN"):
        withdraw(hub, full, publication)
    assert sent.repository in server.repositories

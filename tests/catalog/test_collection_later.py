"""What becomes of a merge that was published into a collection: it is looked at again, and it can be taken back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from catalog import facts, record, schema
from catalog.collection import INDEX, read_index
from catalog.errors import CatalogueError, Refused
from catalog.hub import Hub
from catalog.publish import Policy, publish
from catalog.takedown import withdraw
from catalog.verify import Verifier, publications

from .hub_contents import TOKEN, HubServer, Repository
from .hub_server import serving
from .releases import release_of
from .samples import DOG, NEON, merge, result, rows, start

POLICY = Policy("me", collection="merges")
METHODS = ("ziplora", "direct", "ties")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> Hub:
    return Hub(server.endpoint)


@pytest.fixture
def ready(tmp_path: Path, server: HubServer, hub: Hub) -> Engine:
    """A catalogue whose three merges are in one collection."""
    engine = schema.open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    start(engine)
    parent = server.add("you/dog-lora", {"README.md": b"---\nlicense: mit\n---\n", "dog.safetensors": b"dog"})
    first = release_of(tmp_path)
    subject = replace(first.subject, revision=parent.head)
    for method in METHODS:
        merged = merge(DOG, NEON, method)
        record.record_done(engine, merged, result())
        release = replace(first, merge_id=merged.merge_id, method=method, subject=subject)
        publish(release, POLICY, hub, engine, dry_run=False)
    return engine


@pytest.fixture
def repository(server: HubServer, ready: Engine) -> Repository:
    return server.repositories["me/merges"]


def publication(engine: Engine, method: str) -> facts.Publication:
    (found,) = publications(engine, [merge(DOG, NEON, method).merge_id])
    return found


def codes(engine: Engine, hub: Hub) -> dict[str, list[str]]:
    """What is wrong with each publication, by its folder without the id."""
    verdicts = map(Verifier(hub, private=True).verdict, publications(engine))
    return {one.publication.folder[:-9]: [reason.code for reason in one.reasons] for one in verdicts}


def _shown(repository: Repository) -> str:
    """Names and text of all that can still be seen by a tag, a commit or the branch."""
    return "".join(f"{path}\n{content!r}" for files in repository.commits.values() for path, content in files.items())


def test_what_comes_later_into_a_collection_changes_nothing_of_a_merge(ready: Engine, hub: Hub) -> None:
    assert codes(ready, hub) == {f"dog-neon-{method}": [] for method in METHODS}


@pytest.mark.parametrize("path", ["pytorch_lora_weights.safetensors", "README.md", "provenance.json"])
def test_a_file_that_changed_is_seen_and_whose_it_is(
    ready: Engine, hub: Hub, repository: Repository, path: str
) -> None:
    place, files = publication(ready, "direct").folder, repository.commits[repository.head]
    repository.add({**files, f"{place}/{path}": b"other"})
    assert codes(ready, hub) == {
        "dog-neon-ziplora": [],
        "dog-neon-direct": ["PUBLICATION_DIFFERS"],
        "dog-neon-ties": [],
    }


def test_a_folder_that_is_gone_is_seen(ready: Engine, hub: Hub, repository: Repository) -> None:
    place, files = publication(ready, "ties").folder, repository.commits[repository.head]
    repository.add({path: content for path, content in files.items() if not path.startswith(place)})
    assert codes(ready, hub)["dog-neon-ties"] == ["PUBLICATION_DIFFERS"]


def test_nothing_shows_a_merge_that_was_taken_back_and_the_others_stay(
    ready: Engine, hub: Hub, repository: Repository
) -> None:
    gone = publication(ready, "direct")
    withdraw(hub, ready, gone)
    assert gone.folder not in _shown(repository)
    assert gone.merge_id not in _shown(repository)
    assert list(repository.commits) == [repository.head]
    assert set(repository.tags) == {f"merge-{merge(DOG, NEON, name).merge_id[:12]}" for name in ("ziplora", "ties")}
    assert set(repository.tags.values()) == {repository.head}
    index = read_index(repository.commits[repository.head][INDEX])
    assert [one.method for one in index] == ["ziplora", "ties"]
    assert codes(ready, hub) == {"dog-neon-ziplora": [], "dog-neon-ties": []}


def test_a_collection_goes_with_its_last_merge(ready: Engine, hub: Hub, server: HubServer) -> None:
    for method in METHODS:
        withdraw(hub, ready, publication(ready, method))
    assert set(server.repositories) == {"you/dog-lora"}
    assert {row.status for row in rows(ready, schema.Publication)} == {"withdrawn"}


def test_a_merge_that_never_arrived_is_taken_back_without_a_trace(ready: Engine, hub: Hub, server: HubServer) -> None:
    before = publication(ready, "ties")
    staged = replace(before, merge_id=merge(DOG, NEON, "dare").merge_id, status="staged", commit=None)
    record.record_done(ready, merge(DOG, NEON, "dare"), result())
    record.record_publication(ready, staged)
    withdraw(hub, ready, staged)
    assert codes(ready, hub) == {f"dog-neon-{method}": [] for method in METHODS}


def test_a_repository_that_holds_something_else_by_now_is_left_alone(
    ready: Engine, hub: Hub, repository: Repository
) -> None:
    head = repository.add({"README.md": b"my own"})
    with pytest.raises(Refused, match="NAME_TAKEN"):
        withdraw(hub, ready, publication(ready, "direct"))
    assert repository.head == head


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["commit", "forget_history", "remove_tag", "tag"])
def test_a_withdrawal_that_is_stopped_is_finished_by_the_next(
    ready: Engine, hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    made: Callable[..., Any] = getattr(hub, step)

    def stopped(*given: Any, **named: Any) -> None:
        if after:
            made(*given, **named)
        raise CatalogueError("HUB_UNREACHABLE", "The line is cut.")

    gone = publication(ready, "ziplora")
    with monkeypatch.context() as patched:
        patched.setattr(hub, step, stopped)
        with pytest.raises(CatalogueError, match="HUB_UNREACHABLE"):
            withdraw(hub, ready, gone)
    assert publication(ready, "ziplora").status == "verified"
    withdraw(hub, ready, gone)
    assert gone.folder not in _shown(repository)
    assert set(repository.tags.values()) == {repository.head}
    assert codes(ready, hub) == {"dog-neon-direct": [], "dog-neon-ties": []}

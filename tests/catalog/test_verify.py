"""What was published is looked at again: its files, its parents, their licences, who may see it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from catalog import record
from catalog.hub import Hub
from catalog.publish import Policy, publish
from catalog.release import Release
from catalog.verify import Verifier, licences_changed, publications

from .hub_contents import TOKEN, HubServer, Repository
from .hub_server import serving
from .releases import release_of
from .samples import DOG, NEON, adapter, merge, result, start

CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def parent(server: HubServer) -> Repository:
    """The subject's repository."""
    return server.add("you/dog-lora", {"README.md": CARD, "dog.safetensors": b"dog"})


@pytest.fixture
def release(tmp_path: Path, parent: Repository) -> Release:
    made = release_of(tmp_path)
    return replace(made, subject=replace(made.subject, revision=parent.head))


@pytest.fixture
def published(catalogue: Engine, server: HubServer, release: Release) -> Repository:
    """The repository of the published merge."""
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    sent = publish(release, Policy("me"), Hub(server.endpoint), catalogue, dry_run=False)
    return server.repositories[sent.repository]


def codes(catalogue: Engine, server: HubServer) -> list[str]:
    """What is wrong with the one publication."""
    (one,) = publications(catalogue)
    return [reason.code for reason in Verifier(Hub(server.endpoint), private=True).verdict(one).reasons]


def test_what_stayed_as_it_was_is_all_right(catalogue: Engine, server: HubServer, published: Repository) -> None:
    published.add({**published.commits[published.head], "notes.md": b"of somebody"})
    assert codes(catalogue, server) == []


@pytest.mark.parametrize("path", ["pytorch_lora_weights.safetensors", "README.md", "provenance.json"])
def test_a_file_that_changed_or_went_is_seen(
    catalogue: Engine, server: HubServer, published: Repository, path: str
) -> None:
    before = published.commits[published.head]
    published.add({**before, path: before[path] + b" "})
    assert codes(catalogue, server) == ["PUBLICATION_DIFFERS"]
    published.add({name: content for name, content in before.items() if name != path})
    assert codes(catalogue, server) == ["PUBLICATION_DIFFERS"]


def test_a_history_that_was_rewritten_is_seen(catalogue: Engine, server: HubServer, published: Repository) -> None:
    files = published.commits.pop(published.head)
    published.add({**files, "x": b""})
    assert codes(catalogue, server) == ["PUBLICATION_DIFFERS"]


def test_a_repository_that_is_gone_is_seen(
    catalogue: Engine, server: HubServer, published: Repository, release: Release
) -> None:
    del server.repositories[f"me/{release.name}"]
    assert codes(catalogue, server) == ["PUBLICATION_GONE"]


def test_one_that_everybody_sees_is_seen(catalogue: Engine, server: HubServer, published: Repository) -> None:
    published.private = False
    assert codes(catalogue, server) == ["PUBLICATION_PUBLIC"]


def test_a_parent_that_is_gone_is_seen(catalogue: Engine, server: HubServer, published: Repository) -> None:
    del server.repositories["you/dog-lora"]
    assert codes(catalogue, server) == ["SOURCE_GONE"]


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "other", "gpl-3.0"])
def test_a_licence_that_changed_is_seen(
    catalogue: Engine, server: HubServer, published: Repository, parent: Repository, licence: str
) -> None:
    parent.add({**parent.commits[parent.head], "README.md": CARD.replace(b"mit", licence.encode())})
    assert codes(catalogue, server) == ["LICENCE_CHANGED"]


def test_a_parent_that_only_got_a_new_commit_is_all_right(
    catalogue: Engine, server: HubServer, published: Repository, parent: Repository
) -> None:
    parent.add({**parent.commits[parent.head], "more.txt": b""})
    assert codes(catalogue, server) == []


def test_the_parent_of_two_merges_is_looked_at_once(
    catalogue: Engine, server: HubServer, published: Repository
) -> None:
    (one,) = publications(catalogue)
    verifier = Verifier(Hub(server.endpoint), private=True)
    server.requests.clear()
    verifier.verdict(one)
    verifier.verdict(one)
    assert len([asked for asked in server.requests if "you/dog-lora" in asked]) == 2


def test_a_scan_that_saw_another_licence_tells_which_publications_it_forbids(
    catalogue: Engine, published: Repository
) -> None:
    record.record_adapters(catalogue, [adapter(DOG, "subject", licence="mit")])
    record.record_adapters(catalogue, [adapter(NEON, "style", licence="openrail++")])
    assert licences_changed(catalogue) == []
    record.record_adapters(catalogue, [adapter(DOG, "subject", licence="cc-by-nd-4.0")])
    ((merge_id, reason),) = licences_changed(catalogue)
    assert (merge_id, reason.code) == (merge().merge_id, "LICENCE_CHANGED")
    assert "cc-by-nd-4.0" in reason.fact

"""Adapters that a night does not see: nothing is called gone before the Hub has said so of it in three nights."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from catalog import record, schema
from catalog.facts import Reason
from catalog.hub import Hub
from catalog.schema import Catalogue, open_catalogue
from flows.missing import look_over
from flows.scan import Found, is_unanswered
from tests.catalog.hub_contents import TOKEN, HubServer, always, nothing_wrong
from tests.catalog.hub_server import serving

from .crowd import fill, folder_of, settings_of

SEARCH = {"role": "subject", "search": {"limit": 100_000}}
LOST = "me/lora-00000"


@dataclass
class Nights:
    """One catalogue, night after night."""

    server: HubServer
    catalogue: Catalogue
    count: int = 0

    def next(self, source: dict[str, Any] = SEARCH) -> tuple[list[Found], Reason | None]:
        self.count += 1
        night_id, settings = f"night-{self.count}", settings_of(source, folder_of(self.catalogue))
        record.record_night_started(self.catalogue, night_id, settings.model_dump(mode="json"), datetime.now(UTC))
        found, doubtful = look_over(settings, Hub(self.server.endpoint), self.catalogue, night_id)
        offered = None if any(map(is_unanswered, found)) else len(found)
        record.record_night_finished(self.catalogue, night_id, {"offered": offered}, datetime.now(UTC))
        return found, doubtful

    def status(self, repository: str = LOST) -> str:
        """The catalogue's word for the adapter that was seen there."""
        chosen = select(schema.Adapter.status).join(schema.Alias, schema.Alias.sha256 == schema.Adapter.sha256)
        with self.catalogue.connect() as connection:
            return str(connection.scalar(chosen.where(schema.Alias.repository == repository)))

    def names(self) -> set[str]:
        """Everywhere anything was seen."""
        with self.catalogue.connect() as connection:
            return set(connection.scalars(select(schema.Alias.repository)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # to others the Hub does not say whether there is such a repository
    with serving() as running:
        fill(running, 20)
        yield running


@pytest.fixture
def nights(server: HubServer, tmp_path: Path) -> Iterator[Nights]:
    catalogue = open_catalogue(f"sqlite:///{tmp_path / 'catalog'}.sqlite", migrate=True)
    yield Nights(server, catalogue)
    catalogue.dispose()


def test_a_deleted_adapter_is_gone_after_three_nights_and_not_before(server: HubServer, nights: Nights) -> None:
    nights.next()
    deleted = server.repositories.pop(LOST)
    for _ in range(2):
        nights.next()
        assert nights.status() == "usable"
    nights.next()
    assert nights.status() == "gone"
    server.repositories[LOST] = deleted
    nights.next()
    assert nights.status() == "usable"


def test_two_absences_with_a_return_between_them_count_from_the_start(server: HubServer, nights: Nights) -> None:
    nights.next()
    for _ in range(2):
        deleted = server.repositories.pop(LOST)
        nights.next()
        nights.next()
        server.repositories[LOST] = deleted
        nights.next()
    assert nights.status() == "usable"


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_answer_that_says_nothing_of_it_never_makes_it_gone(server: HubServer, nights: Nights, status: int) -> None:
    nights.next()
    server.between_pages = lambda: server.failing.update({f"/api/models/{LOST}": status})
    hidden = server.repositories[LOST].commits.pop(server.repositories[LOST].head)
    server.repositories[LOST].add({"README.md": hidden["README.md"].replace(b'"lora"', b'"no"')})
    for _ in range(4):
        nights.next()
    assert f"GET /api/models/{LOST}/revision/main" in server.requests
    assert nights.status() == "usable"


def test_without_a_token_nothing_is_gone(server: HubServer, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    nights.next()
    del server.repositories[LOST]
    for _ in range(4):
        nights.next()
    assert nights.status() == "usable"


def test_a_renamed_adapter_is_the_same_under_both_names(server: HubServer, nights: Nights) -> None:
    nights.next(SEARCH | {"search": {"text": "lora-"}})
    server.repositories["me/new-name"] = server.repositories.pop(LOST)
    server.renamed = {LOST: "me/new-name"}
    for _ in range(4):
        nights.next(SEARCH | {"search": {"text": "lora-"}})
    assert {LOST, "me/new-name"} <= nights.names()
    assert nights.status() == nights.status("me/new-name") == "usable"


def test_what_a_page_left_out_is_asked_for_before_it_is_judged(server: HubServer, nights: Nights) -> None:
    nights.next()
    server.page = 10
    first = next(iter(server.repositories))

    def one_less_in_front() -> None:
        server.repositories.pop(first, None)

    server.between_pages = one_less_in_front  # the second page begins one later
    server.requests.clear()
    found, _ = nights.next()
    assert "me/lora-00010" not in {one.repository for one in found}
    assert "GET /api/models/me/lora-00010/revision/main" in server.requests
    assert nights.status("me/lora-00010") == "usable"


def test_a_listing_that_shrinks_is_doubted_and_changes_nothing(server: HubServer, nights: Nights) -> None:
    nights.next()
    all_of_them = dict(server.repositories)
    server.repositories.clear()
    for _ in range(2):
        server.requests.clear()
        _, doubtful = nights.next()
        if doubtful is not None:
            assert doubtful.code == "LISTING_SHRANK"
            assert doubtful.fact == "The sources offer 0 adapters, and offered 20 when they last answered."
            assert server.requests == ["GET /api/models"], "nobody is asked about"
    assert nights.status() == "usable"
    server.repositories.update(all_of_them)
    assert nights.next()[1] is None


def test_other_sources_may_offer_less(nights: Nights) -> None:
    nights.next()
    assert nights.next(SEARCH | {"search": {"text": "lora-00007"}})[1] is None


def test_a_repository_that_does_not_answer_is_a_doubt_even_when_its_file_is_named(
    server: HubServer, nights: Nights
) -> None:
    server.failing = {LOST: 503}
    _, doubtful = nights.next({"role": "subject", "repository": LOST, "file": "pytorch_lora_weights.safetensors"})
    assert doubtful is not None
    assert doubtful.code == "HUB_BUSY"


def test_a_hub_that_is_away_is_a_doubt_and_no_absence(server: HubServer, nights: Nights) -> None:
    nights.next()
    server.trouble = always("503")
    for _ in range(4):
        found, doubtful = nights.next()
        assert [one.status for one in found] == ["unanswered"]
        assert doubtful is not None
        assert doubtful.code == "HUB_BUSY"
    server.trouble = nothing_wrong
    nights.next()
    assert nights.status() == "usable"

"""Adapters that earlier nights saw on the Hub and this one did not; and whether what this one saw can be trusted.

A deleted repository, a private one and a renamed one look alike, and a Hub in trouble looks like all of them: nothing
is called gone before the Hub has said so, of it alone, in three nights.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import get_args

from catalog import facts, record
from catalog.candidate import Candidate
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.folder import LOCAL
from catalog.hub import Hub
from catalog.hub_errors import AGAIN, UNANSWERED
from catalog.queries import UsableAdapter, last_offered, nights_refused, usable_adapters
from catalog.schema import Catalogue
from flows.scan import Found, is_unanswered, scan_and_record
from flows.settings import Settings

_ASKED_A_NIGHT = 200
"""Those that were seen longest ago come first."""
_NIGHTS = 3
_ROLES: tuple[facts.Role, ...] = get_args(facts.Role)
_LEAST_SHARE = 0.7
"""Of what the same sources offered before; with less, something is wrong with the Hub or with the settings."""


def doubt(settings: Settings, catalogue: Catalogue, found: Sequence[Found]) -> Reason | None:
    """Why what a scan found is too little to publish by, or to call anything gone; None when it is not."""
    for one in found:
        if is_unanswered(one) and one.reason is not None:
            return Reason(one.reason.code, f"Of {one.repository} nothing is known: {one.reason.fact}", AGAIN)
    before = last_offered(catalogue, settings.model_dump(mode="json")["sources"])
    if before is not None and len(found) < _LEAST_SHARE * before:
        fact = f"The sources offer {len(found)} adapters, and offered {before} when they last answered."
        step = "look at ziplora scan; if that is right, nothing: the next night takes it for the usual number."
        return Reason("LISTING_SHRANK", fact, step)
    return None


def look_over(settings: Settings, hub: Hub, catalogue: Catalogue, night_id: str) -> tuple[list[Found], Reason | None]:
    """What all sources offer, written down, and what is missing asked about; with why it is too little, if it is."""
    found = scan_and_record(settings, hub, catalogue, night_id)
    doubtful = doubt(settings, catalogue, found)
    if doubtful is None:
        _ask_for_missing(hub, catalogue, night_id, found)
    return found, doubtful


def _ask_for_missing(hub: Hub, catalogue: Catalogue, night_id: str, found: Sequence[Found]) -> None:
    """Ask one by one about the adapters of the Hub that this night did not see, and write down the answers."""
    seen = {one.sha256 for one in found}
    here = {one.repository for one in found if one.status != "gone"}
    missing = [
        one
        for role in _ROLES
        for one in usable_adapters(catalogue, role)
        if one.sha256 not in seen and _on_hub(one) and not here & set(_repositories(one))
    ]
    for one in sorted(missing, key=lambda one: one.aliases[0].seen_at)[:_ASKED_A_NIGHT]:
        try:
            _ask(hub, catalogue, night_id, one)
        except Refused:
            continue  # hidden, gated or moved on: none of it says that it is gone
        except CatalogueError as error:
            if error.code not in UNANSWERED:
                raise
            return


def _on_hub(adapter: UsableAdapter) -> bool:
    return bool(adapter.aliases) and all(alias.revision != LOCAL for alias in adapter.aliases)


def _repositories(adapter: UsableAdapter) -> list[str]:
    return list(dict.fromkeys(alias.repository for alias in adapter.aliases))


def _ask(hub: Hub, catalogue: Catalogue, night_id: str, adapter: UsableAdapter) -> None:
    """Where it is still, under whatever name; or one more night in which it was nowhere."""
    last, now = adapter.aliases[0], datetime.now(UTC)
    for repository in _repositories(adapter):
        try:
            there = hub.repository(repository)
        except Refused as refused:
            if refused.code != "GONE":
                raise
            reason = refused.reason
            continue
        if isinstance(there, Candidate) and hub.start_of(there).candidate.sha256 == adapter.sha256:
            alias = facts.Alias(there.repository, there.revision, there.file_name, adapter.sha256, now)
            record.record_adapters(catalogue, (), [alias])
        return
    place = (last.repository, last.revision, last.file_name)
    record.record_refusals(catalogue, [facts.Refusal(night_id, *place, reason, now, adapter.sha256)])
    if nights_refused(catalogue, adapter.sha256, reason.code, last.seen_at) >= _NIGHTS:
        record.record_gone(catalogue, adapter.sha256)

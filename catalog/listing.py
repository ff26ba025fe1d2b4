"""An entry of the Hub's listing as a candidate: what was asked for in one request for a thousand repositories."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from catalog.candidate import Candidate, Unfit, choose_weights
from catalog.card import card_facts
from catalog.facts import Reason

EXPAND = ["sha", "tags", "cardData", "gated", "lastModified", "siblings"]
"""What an entry has to hold beside its id."""


def offered(info: Mapping[str, Any], file_name: str | None = None) -> Candidate | Unfit:
    """What a repository offers; `file_name` says which file where it holds several."""
    repository, revision = str(info["id"]), str(info.get("sha") or "")
    siblings = tuple(str(sibling["rfilename"]) for sibling in info.get("siblings") or ())
    if not revision:
        reason = Reason("COMMIT_GONE", "The Hub names no commit of it.", "scan again.")
        return Unfit(repository, revision, file_name or "", reason)
    chosen = choose_weights(siblings, file_name)
    if isinstance(chosen, Reason):
        return Unfit(repository, revision, file_name or "", chosen)
    modified = info.get("lastModified")
    card = card_facts(info.get("cardData"), siblings)
    return Candidate(
        repository=repository,
        revision=revision,
        file_name=chosen,
        size_bytes=None,
        sha256=None,
        card=replace(card, tags=tuple(str(tag) for tag in info.get("tags") or card.tags)),
        siblings=siblings,
        gated=bool(info.get("gated")),
        modified_at=datetime.fromisoformat(modified) if isinstance(modified, str) else None,
    )

"""What the sources offer: each adapter judged by its header, its card and its licence, and written into the catalogue.

A file on this disk is also read; one on the Hub is read when a pair needs it.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catalog import facts, record
from catalog.candidate import Candidate, Unfit
from catalog.errors import Refused
from catalog.facts import AdapterStatus, Reason
from catalog.folder import scan_folder
from catalog.hub import Hub
from catalog.licence import gate
from catalog.schema import Catalogue
from flows.settings import FolderSource, RepositorySource, Settings, Source
from ziplora.adapter import CONFIG_NAME, AdapterHeader, describe, family_of, needs_config, read
from ziplora.alpha import parse_config
from ziplora.header import Refusal, read_header

_UNSUPPORTED = {"UNSUPPORTED_ADAPTER", "UNSUPPORTED_LAYOUT", "UNSUPPORTED_DTYPE", "MIXED_LAYOUT", "NO_UNET_LAYERS"}
_RESTRICTED = ("LICENCE_", "CONSENT", "GATED")


@dataclass(frozen=True)
class Found:
    """One adapter or repository as the scan judged it."""

    repository: str
    revision: str
    file_name: str
    role: facts.Role
    sha256: str | None
    status: AdapterStatus
    licence: str | None
    reason: Reason | None
    """Why it is not usable; None when it is."""
    facts: Mapping[str, Any]


def status_of(code: str) -> AdapterStatus:
    """The word for an adapter that was refused with this code."""
    if code.startswith(_RESTRICTED):
        return "restricted"
    if code in ("GONE", "COMMIT_GONE"):
        return "gone"
    return "unsupported" if code in _UNSUPPORTED else "rejected"


def offers(source: Source, base_model: str, hub: Hub) -> Iterator[Candidate | Unfit]:
    """Everything in a source."""
    if isinstance(source, FolderSource):
        yield from scan_folder(source.folder, source.names)
    elif isinstance(source, RepositorySource):
        try:
            yield hub.repository(source.repository, source.revision, source.file)
        except Refused as error:
            yield Unfit(source.repository, source.revision, source.file or "", error.reason)
    else:
        wanted = source.search
        own = None if Path(base_model).is_dir() else base_model
        yield from hub.search(
            base_model=wanted.base_model or own,
            tags=wanted.tags,
            author=wanted.author,
            text=wanted.text,
            limit=wanted.limit,
        )


def judge(offer: Candidate | Unfit, source: Source, settings: Settings, hub: Hub) -> Found:
    """Whether an adapter may be merged, from the cheapest fact to the dearest; the first thing wrong decides."""
    if isinstance(offer, Unfit):
        status = status_of(offer.reason.code)
        return Found(
            offer.repository, offer.revision, offer.file_name, source.role, None, status, None, offer.reason, {}
        )
    known: dict[str, Any] = {}
    reason = None if settings.merge_unknown_licences else gate(offer.card.licence)
    try:
        reason = reason or _gated(offer)
        offer, header = _header(offer, hub)
        known = {**asdict(header), "rank": max(header.ranks), **_words(offer, source)}
        reason = reason or _misfit(header, settings) or _without_prompt(known)
    except Refusal as refusal:
        reason = Reason(refusal.code, refusal.fact, refusal.next_step)
    except Refused as error:
        reason = error.reason
    return Found(
        offer.repository,
        offer.revision,
        offer.file_name,
        source.role,
        offer.sha256,
        status_of(reason.code) if reason else "usable",
        offer.card.licence,
        reason,
        known,
    )


def _gated(offer: Candidate) -> Reason | None:
    if not offer.gated:
        return None
    link = f"https://huggingface.co/{offer.repository}"
    return Reason("GATED", "Its owner gives it only to those who ask.", f"ask for access at {link}, then scan again.")


def _header(offer: Candidate, hub: Hub) -> tuple[Candidate, AdapterHeader]:
    """What the file says about itself, and the candidate with its size and hash."""
    if offer.folder is not None:
        return offer, read(offer.folder / offer.file_name).facts
    start = hub.start_of(offer)
    size_bytes = start.candidate.size_bytes or len(start.content)
    header = read_header(io.BytesIO(start.content), size_bytes)
    config = hub.small_file(offer, CONFIG_NAME) if needs_config(header) else None
    return start.candidate, describe(header, size_bytes, parse_config(config) if config else None)


def _words(offer: Candidate, source: Source) -> dict[str, Any]:
    """How the adapter is called up, and where its file and pictures are."""
    prompts = (source.trigger_prompt, *offer.card.instance_prompts)
    return {
        "prompt": next((prompt for prompt in prompts if prompt), None),
        "slot": source.slot,
        "file": str(offer.folder / offer.file_name) if offer.folder else None,
        "samples": [str(path) for path in offer.sample_paths if path.is_file()],
        "notes": [asdict(note) for note in offer.card.notes],
        "card_base_models": list(offer.card.base_models),
    }


def _misfit(header: AdapterHeader, settings: Settings) -> Reason | None:
    folder = Path(settings.base_model.id)
    wanted = family_of(folder) if folder.is_dir() else "sdxl"
    if header.base == wanted:
        return None
    fact = f"By its shapes it was trained on {header.base}, and this night's base model is of {wanted}."
    return Reason("BASE_MISMATCH", fact, "leave it out, or merge it in a night of its own base model.")


def _without_prompt(known: Mapping[str, Any]) -> Reason | None:
    if known["prompt"]:
        return None
    return Reason("NO_TRIGGER_PROMPT", "Its card names no instance prompt.", "set trigger_prompt in its source.")


def scan(settings: Settings, hub: Hub) -> Iterator[Found]:
    """Judge everything in all sources, one adapter after the other."""
    for source in settings.sources:
        for offer in offers(source, settings.base_model.id, hub):
            yield judge(offer, source, settings, hub)


def record_found(one: Found, catalogue: Catalogue, night_id: str) -> None:
    """Write down what a night saw of an adapter."""
    now = datetime.now(UTC)
    if one.sha256:
        adapter = facts.Adapter(one.sha256, one.role, one.status, one.licence, one.facts, now)
        alias = facts.Alias(one.repository, one.revision, one.file_name, one.sha256, now)
        record.record_adapter(catalogue, adapter, [alias])
    if one.reason:
        refusal = facts.Refusal(night_id, one.repository, one.revision, one.file_name, one.reason, now, one.sha256)
        record.record_refusal(catalogue, refusal)


def usable(found: Iterable[Found]) -> list[Found]:
    """One entry for each file that may be merged: the same bytes under two names are one adapter."""
    return list({one.sha256: one for one in reversed([*found]) if one.reason is None}.values())[::-1]

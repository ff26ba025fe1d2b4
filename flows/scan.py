"""What the sources offer: each adapter judged by its header, its card and its licence, and written into the catalogue.

A file on this disk is also read; one on the Hub is read when a pair needs it. What the listing says is judged anew each
night. Where the Hub does not answer, what earlier nights saw there stands in for it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from catalog import facts, record
from catalog.candidate import Candidate, CardFacts, Unfit
from catalog.consent import Consent, consent_gate
from catalog.errors import CatalogueError
from catalog.facts import AdapterStatus, Header, Reason
from catalog.folder import LOCAL, scan_folder
from catalog.hub import Hub
from catalog.hub_errors import UNANSWERED
from catalog.licence import gate
from catalog.names import one_line
from catalog.queries import night_began, usable_adapters
from catalog.schema import Catalogue
from catalog.sidecars import keep_adapters
from catalog.takedown import tombstones
from flows.headers import headers_of, look, place_of
from flows.plan import input_of
from flows.progress import tell
from flows.settings import FolderSource, RepositorySource, SearchSource, Settings, Source
from flows.shared_store import mirror_of
from flows.trouble import reason_of
from ziplora.adapter import family_of, variant_of

_PIECE = 200
"""So many adapters are looked at together, and written down together."""
_READERS = 12
"""Threads that ask the Hub."""
_T = TypeVar("_T")

_UNSUPPORTED = {
    "UNSUPPORTED_ADAPTER",
    "UNSUPPORTED_LAYOUT",
    "UNSUPPORTED_DTYPE",
    "MIXED_LAYOUT",
    "NO_UNET_LAYERS",
    "NEEDS_EMBEDDINGS",
}
_RESTRICTED = ("LICENCE_", "CONSENT", "GATED")


@dataclass(frozen=True)
class Found:
    """One adapter or repository as the scan judged it."""

    repository: str
    revision: str
    file_name: str
    role: facts.Role
    sha256: str | None
    status: AdapterStatus | Literal["unanswered"]
    licence: str | None
    reason: Reason | None
    """Why it is not usable; None when it is."""
    facts: Mapping[str, Any]
    remembered: bool = False
    """An earlier night saw it, and tonight the Hub does not say what there is."""


def status_of(code: str) -> AdapterStatus | Literal["unanswered"]:
    """The word for an adapter that was refused with this code; `unanswered` says nothing of it."""
    if code in UNANSWERED:
        return "unanswered"
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
        except CatalogueError as error:
            reason = reason_of(error)
            file_name = "" if reason.code in UNANSWERED else source.file or ""
            yield Unfit(source.repository, source.revision, file_name, reason)
    else:
        try:
            yield from _searched(source, base_model, hub)
        except CatalogueError as error:
            yield Unfit("a search of the Hub", "", "", reason_of(error))


def _searched(source: SearchSource, base_model: str, hub: Hub) -> Iterator[Candidate | Unfit]:
    wanted = source.search
    own = None if Path(base_model).is_dir() else base_model
    return hub.search(
        base_model=wanted.base_model or own,
        tags=wanted.tags,
        author=wanted.author,
        text=wanted.text,
        limit=wanted.limit,
    )


def _remembered(source: Source, settings: Settings, catalogue: Catalogue) -> Iterator[Found]:
    """What the last night that saw any of a source on the Hub saw of it, as far as it is at hand."""
    known = [one for one in usable_adapters(catalogue, source.role) if _may_be_of(source, one.aliases)]
    last = max((one.aliases[0].seen_at for one in known), default=None)
    since = night_began(catalogue, last) if last else None
    mirror = mirror_of(settings)
    for one in known:
        seen = one.aliases[0]
        place = (seen.repository, seen.revision, seen.file_name)
        fetched = input_of(settings, source.role, one.sha256, one.licence, one.facts, place)
        here = fetched.file.is_file() or (mirror is not None and mirror.is_there(fetched.file))
        if here and since and seen.seen_at >= since:
            offer = Candidate(*place, None, one.sha256, CardFacts(), ())
            denied = consent_gate(offer, [one.facts["prompt"]], Consent(**vars(settings.policy)))
            status = status_of(denied.code) if denied else "usable"
            yield Found(*place, source.role, one.sha256, status, one.licence, denied, one.facts, remembered=True)


def _may_be_of(source: Source, aliases: Sequence[facts.Alias]) -> bool:
    """Whether a source of the Hub may offer what was seen here, by its name."""
    repository, revision = (aliases[0].repository, aliases[0].revision) if aliases else ("", LOCAL)
    if isinstance(source, RepositorySource):
        return repository == source.repository
    if revision == LOCAL or isinstance(source, FolderSource):
        return False
    wanted = source.search
    return repository.startswith(f"{wanted.author}/" if wanted.author else "") and (wanted.text or "") in repository


def judge(offer: Candidate | Unfit, source: Source, settings: Settings, said: Header | Reason | None) -> Found:
    """Whether an adapter may be merged, from the cheapest fact to the dearest; the first thing wrong decides.

    `said` is what its file says, or why nobody knows; None of a file that nobody may read.
    """
    if isinstance(offer, Unfit):
        status = status_of(offer.reason.code)
        return Found(
            offer.repository, offer.revision, offer.file_name, source.role, None, status, None, offer.reason, {}
        )
    known: dict[str, Any] = {}
    reason = consent_gate(offer, _prompts(offer, source), Consent(**vars(settings.policy)))
    if not settings.merge_unknown_licences:
        reason = reason or gate(offer.card.licence)
    reason = reason or _gated(offer)
    if isinstance(said, Header) and said.facts is not None:
        known = {**said.facts, "rank": max(said.facts["ranks"]), **_words(offer, source)}
        known["variant"] = said.facts["variant"] or variant_of({"base_model": " ".join(offer.card.base_models)})
        reason = reason or _misfit(known, settings) or _without_embeddings(known, offer) or _without_prompt(known)
    elif said is not None:
        reason = reason or (said.reason if isinstance(said, Header) else said)
    place = said if isinstance(said, Header) else offer
    return Found(
        place.repository,
        place.revision,
        place.file_name,
        source.role,
        said.sha256 if isinstance(said, Header) else offer.sha256,
        status_of(reason.code) if reason else "usable",
        offer.card.licence,
        reason,
        known,
    )


def _unless_buried(found: Found, buried: Collection[str]) -> Found:
    """A repository that was taken down stays so with other bytes, and its bytes under another name."""
    if found.repository.casefold() in buried or found.sha256 in buried:
        return replace(found, status="restricted", reason=facts.TAKEN_DOWN)
    return found


def _gated(offer: Candidate) -> Reason | None:
    if not offer.gated:
        return None
    link = f"https://huggingface.co/{offer.repository}"
    return Reason("GATED", "Its owner gives it only to those who ask.", f"ask for access at {link}, then scan again.")


def _prompts(offer: Candidate, source: Source) -> list[str]:
    """What calls the adapter up, the settings' own first."""
    return [prompt for prompt in (source.trigger_prompt, *offer.card.instance_prompts) if prompt]


def _words(offer: Candidate, source: Source) -> dict[str, Any]:
    """How the adapter is called up, and where its file and pictures are."""
    return {
        "prompt": next(iter(_prompts(offer, source)), None),
        "slot": source.slot,
        "file": str(offer.folder / offer.file_name) if offer.folder else None,
        "samples": [str(path) for path in offer.sample_paths if path.is_file()],
        "notes": [asdict(note) for note in offer.card.notes],
        "card_base_models": list(offer.card.base_models),
    }


def _misfit(known: Mapping[str, Any], settings: Settings) -> Reason | None:
    folder = Path(settings.base_model.id)
    wanted = family_of(folder) if folder.is_dir() else "sdxl"
    if known["base"] == wanted:
        return None
    claim = ", ".join(map(one_line, known["card_base_models"]))[:200]
    fact = f"By its shapes it was trained on {known['base']}, and this night's base model is of {wanted}."
    fact += f" Its card says {claim}." if claim else ""
    return Reason("BASE_MISMATCH", fact, "leave it out, or merge it in a night of its own base model.")


def _without_embeddings(known: Mapping[str, Any], offer: Candidate) -> Reason | None:
    beside = [name for name in offer.siblings if name.endswith("_emb.safetensors")]
    if not known["embeddings"] and not beside:
        return None
    fact = "Its prompts need words of its own (textual inversion), which a merge does not carry."
    return Reason("NEEDS_EMBEDDINGS", fact, "leave it out, or ask the author for one that needs none.")


def _without_prompt(known: Mapping[str, Any]) -> Reason | None:
    if known["prompt"]:
        return None
    return Reason("NO_TRIGGER_PROMPT", "Its card names no instance prompt.", "set trigger_prompt in its source.")


def scan(settings: Settings, hub: Hub, catalogue: Catalogue | None) -> Iterator[Found]:
    """Judge everything in all sources, in their order; what is read from the Hub is kept in the catalogue."""
    seen, buried = 0, tombstones(catalogue) if catalogue else frozenset()
    with ThreadPoolExecutor(_READERS) as pool:
        for source in settings.sources:
            for one in _judged(source, settings, hub, catalogue, pool):
                yield _unless_buried(one, buried)
                seen += 1
                tell("adapters", seen, 0)
                if is_unanswered(one) and catalogue is not None:
                    yield from _remembered(source, settings, catalogue)


def is_unanswered(one: Found) -> bool:
    """Whether this stands for a whole source, of which the Hub did not say what it offers."""
    return one.status == "unanswered" and not one.file_name


def _judged(
    source: Source, settings: Settings, hub: Hub, catalogue: Catalogue | None, pool: ThreadPoolExecutor
) -> Iterator[Found]:
    """Everything in a source, judged; what is wrong with all its files is said once and ends it."""
    for piece in _pieces(offers(source, settings.base_model.id, hub), _PIECE):
        try:
            said = headers_of(piece, hub, catalogue, pool)
        except CatalogueError as error:
            yield judge(Unfit("files of the Hub", "", "", reason_of(error)), source, settings, None)
            return
        for offer in piece:
            looked = said.get(place_of(offer))
            if isinstance(offer, Candidate) and offer.folder is not None:
                looked = look(offer, hub)
            yield judge(offer, source, settings, looked)


def _pieces(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The items, so many at a time."""
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece


def _record(some: Iterable[Found], catalogue: Catalogue, night_id: str, usable_before: set[str], store: Path) -> None:
    """Write down what a night saw of adapters: of one at several places, the first where it is usable."""
    now = datetime.now(UTC)
    adapters, aliases, refusals = {}, [], []
    for one in some:
        if one.remembered:
            continue
        if one.sha256 and one.status != "unanswered":
            if one.sha256 not in usable_before:
                adapters[one.sha256] = facts.Adapter(one.sha256, one.role, one.status, one.licence, one.facts, now)
            aliases.append(facts.Alias(one.repository, one.revision, one.file_name, one.sha256, now))
        if one.sha256 and one.status == "usable":
            usable_before.add(one.sha256)
        if one.reason:
            place = (one.repository, one.revision, one.file_name)
            refusals.append(facts.Refusal(night_id, *place, one.reason, now, one.sha256))
    keep_adapters(store, list(adapters.values()), aliases)
    record.record_adapters(catalogue, list(adapters.values()), aliases)
    record.record_refusals(catalogue, refusals)


def scan_and_record(settings: Settings, hub: Hub, catalogue: Catalogue, night_id: str) -> list[Found]:
    """Judge everything, and write down what this night saw."""
    seen: list[Found] = []
    usable_before: set[str] = set()
    for piece in _pieces(scan(settings, hub, catalogue), _PIECE):
        _record(piece, catalogue, night_id, usable_before, settings.store_folder)
        seen += piece
    return seen


def usable(found: Iterable[Found]) -> list[Found]:
    """One entry for each file that may be merged: the same bytes under two names are one adapter."""
    return list({one.sha256: one for one in reversed([*found]) if one.reason is None}.values())[::-1]

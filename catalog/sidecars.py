"""Sidecars: JSON files in a store, beside the results, that hold what the rows of a catalogue hold: of nights,
adapters, finished merges with their scores, publications, and what was taken down.

Each is written before its rows, so that a catalogue can be made anew from them.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from catalog import facts
from catalog.facts import Reason
from catalog.mirror import replacing

MERGE_FACTS = "facts.json"
"""The name of a merge's sidecar in its folder."""
_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class KeptNight:
    """A night, maybe not finished."""

    night_id: str
    settings: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None = None
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class KeptAdapter:
    """An adapter as it was seen last, with all places it was seen at."""

    adapter: facts.Adapter
    first_seen_at: datetime
    aliases: tuple[facts.Alias, ...]


@dataclass(frozen=True)
class KeptMerge:
    """A finished merge with all that scorers saw of it."""

    merge: facts.Merge
    result: facts.Result
    scores: tuple[facts.Score, ...]


@dataclass(frozen=True)
class Unreadable:
    """A sidecar that is damaged."""

    path: Path
    reason: Reason


def keep_night(store: Path, night: KeptNight) -> None:
    """A night began or ended."""
    _write(store / "nights" / f"{night.night_id}.json", night)


def keep_adapters(store: Path, adapters: Collection[facts.Adapter], aliases: Collection[facts.Alias]) -> None:
    """A scan saw these files at these places; what it saw last counts."""
    for adapter in {one.sha256: one for one in adapters}.values():
        path = store / "adapters" / adapter.sha256 / "facts.json"
        earlier = _read(path, _adapter)
        places, first_seen_at = {}, adapter.seen_at
        if isinstance(earlier, KeptAdapter):
            places, first_seen_at = {one.alias_id: one for one in earlier.aliases}, earlier.first_seen_at
        places |= {one.alias_id: one for one in aliases if one.sha256 == adapter.sha256}
        _write(path, KeptAdapter(adapter, first_seen_at, tuple(places.values())))


def keep_merge(store: Path, merge: facts.Merge, result: facts.Result, scores: Collection[facts.Score]) -> None:
    """A merge is finished, and some scorers have seen it; what others saw before stays."""
    path = store / "merges" / merge.merge_id / MERGE_FACTS
    earlier = _read(path, _merge)
    scorers = {one.scorer_id for one in scores}
    others = [one for one in earlier.scores if one.scorer_id not in scorers] if isinstance(earlier, KeptMerge) else []
    _write(path, KeptMerge(merge, result, (*others, *scores)))


def keep_publication(merge_folder: Path, publication: facts.Publication) -> None:
    """How far a publication has come; word of an earlier step that arrives late changes nothing."""
    path = merge_folder / "publications" / f"{publication.publication_id}.json"
    earlier, order = _read(path, _publication), facts.PUBLICATION_ORDER
    if not isinstance(earlier, facts.Publication) or order.index(earlier.status) < order.index(publication.status):
        _write(path, publication)


def keep_tombstone(store: Path, tombstone: facts.Tombstone) -> None:
    """A source was taken down; the first word counts."""
    path = store / "tombstones" / f"{tombstone.tombstone_id}.json"
    if not path.is_file():
        _write(path, tombstone)


def kept_nights(store: Path) -> Iterator[KeptNight | Unreadable]:
    """All nights."""
    return _all(store / "nights", "*.json", lambda said: KeptNight(**_timed(said)))


def kept_adapters(store: Path) -> Iterator[KeptAdapter | Unreadable]:
    """All adapters."""
    return _all(store / "adapters", "*/facts.json", _adapter)


def kept_merges(store: Path) -> Iterator[KeptMerge | Unreadable]:
    """All finished merges."""
    return _all(store / "merges", f"*/{MERGE_FACTS}", _merge)


def kept_merge(store: Path, merge_id: str) -> KeptMerge | Unreadable | None:
    """A finished merge; None when there is no sidecar of it."""
    return _read(store / "merges" / merge_id / MERGE_FACTS, _merge)


def kept_publications(store: Path) -> Iterator[facts.Publication | Unreadable]:
    """All publications of finished merges."""
    return _all(store / "merges", "*/publications/*.json", _publication)


def kept_tombstones(store: Path) -> Iterator[facts.Tombstone | Unreadable]:
    """All that was taken down."""
    return _all(store / "tombstones", "*.json", lambda said: facts.Tombstone(**_timed(said)))


def _write(path: Path, kept: KeptNight | KeptAdapter | KeptMerge | facts.Publication | facts.Tombstone) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(vars(kept), indent=1, default=_plain), encoding="ascii")


def _plain(value: Any) -> object:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else vars(value)


def _all(folder: Path, pattern: str, made: Callable[[Mapping[str, Any]], _Kept]) -> Iterator[_Kept | Unreadable]:
    for path in sorted(folder.glob(pattern)):
        kept = _read(path, made)
        if kept is not None:
            yield kept


def _read(path: Path, made: Callable[[Mapping[str, Any]], _Kept]) -> _Kept | Unreadable | None:
    try:
        return made(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        fact = f"{path} is no sidecar ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        return Unreadable(path, Reason("SIDECAR_DAMAGED", fact, "run a night: it writes what it sees anew."))


def _adapter(said: Mapping[str, Any]) -> KeptAdapter:
    aliases = tuple(facts.Alias(**_timed(one)) for one in said["aliases"])
    return KeptAdapter(facts.Adapter(**_timed(said["adapter"])), _timed(said)["first_seen_at"], aliases)


def _merge(said: Mapping[str, Any]) -> KeptMerge:
    scores = tuple(facts.Score(**_timed(one)) for one in said["scores"])
    return KeptMerge(facts.Merge(**said["merge"]), facts.Result(**_timed(said["result"])), scores)


def _publication(said: Mapping[str, Any]) -> facts.Publication:
    return facts.Publication(**_timed(said))


def _timed(said: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its moments as such."""
    moments = {name for name, value in said.items() if name.endswith("_at") and value is not None}
    return {name: datetime.fromisoformat(value) if name in moments else value for name, value in said.items()}

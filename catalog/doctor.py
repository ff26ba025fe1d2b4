"""Where a catalogue and its store disagree: rows without objects, objects without rows; and how that is mended.

What lies in the store without a row, and is older than a time of grace, is moved to the store's trash: a younger one
may be about to get its row. Nothing is deleted.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Engine, select

from catalog import facts, record
from catalog.facts import Reason
from catalog.folder import sha256_of
from catalog.schema import Adapter, Alias, Merge, Night, Score, reading
from catalog.sidecars import (
    MERGE_FACTS,
    KeptAdapter,
    KeptMerge,
    KeptNight,
    keep_adapters,
    keep_merge,
    keep_night,
    kept_adapters,
    kept_merges,
    kept_nights,
)

GRACE_SECONDS = 24 * 3600.0
_AGAIN = "with --repair the next night does it again."
_TRASH = "with --repair it goes to the store's trash."


@dataclass(frozen=True)
class Fault:
    """One disagreement, and what ends it."""

    item: str
    reason: Reason
    repair: Callable[[], None]


def faults(engine: Engine, store: Path, grace_seconds: float = GRACE_SECONDS) -> list[Fault]:
    """All disagreements between a catalogue and its store; once they are repaired there are none."""
    with reading(engine).connect() as connection:
        words = {row.merge_id: row.status for row in connection.execute(select(Merge.merge_id, Merge.status))}
        adapters = set(connection.scalars(select(Adapter.sha256)))
        nights = set(connection.scalars(select(Night.night_id)))
    trash = _Trash(store, grace_seconds)
    return [
        *_merges(engine, store, words),
        *_without_sidecar(engine, store, adapters, nights),
        *trash.unknown("merges", set(words)),
        *trash.unknown("adapters", adapters),
        *_adapters(store, adapters, trash),
        *_calibrations(store, trash),
        *trash.unfinished(),
    ]


def _merges(engine: Engine, store: Path, words: dict[str, str]) -> Iterator[Fault]:
    """Rows of finished merges against the files of each."""
    kept = {one.merge.merge_id: one for one in kept_merges(store) if isinstance(one, KeptMerge)}
    for merge_id in (merge_id for merge_id, word in words.items() if word == "done"):
        folder = store / "merges" / merge_id
        trouble = _damage(folder)
        if trouble is not None:
            yield Fault(merge_id, trouble, partial(_do_again, engine, folder))
        elif merge_id not in kept:
            fact = f"There is no {MERGE_FACTS} in {folder}, from which its rows could be made anew."
            reason = Reason("SIDECAR_MISSING", fact, "with --repair it is written.")
            yield Fault(merge_id, reason, partial(_keep_merge, engine, store, merge_id))
    for merge_id, one in kept.items():
        if words.get(merge_id) != "done" and _damage(store / "merges" / merge_id) is None:
            fact = "It is finished in the store, and not in the catalogue."
            reason = Reason("ROW_MISSING", fact, "with --repair it is recorded.")
            yield Fault(merge_id, reason, partial(_record, engine, one))


def _damage(folder: Path) -> Reason | None:
    """What is wrong with the files of a merge; one without any pictures is one whose pictures were not to be kept."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        whole = sha256_of(folder / "coefficients.safetensors") == result["coefficients_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        fact = f"Coefficients or result are not in {folder}, or not those that were written."
        return Reason("MERGE_DAMAGED", fact, _AGAIN)
    pictures = folder / "previews" / "previews.json"
    try:
        files = [one["file"] for one in json.loads(pictures.read_text(encoding="utf-8"))["pictures"]]
        missing = [file for file in files if not (pictures.parent / file).is_file()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Reason("PICTURES_MISSING", f"{pictures} cannot be read.", _AGAIN)
    fact = f"{len(missing)} of {len(files)} pictures are not in {pictures.parent}."
    return Reason("PICTURES_MISSING", fact, _AGAIN) if missing else None


def _do_again(engine: Engine, folder: Path) -> None:
    """The sidecar goes first: a merge with neither is found again by whoever was stopped in between."""
    (folder / MERGE_FACTS).unlink(missing_ok=True)
    record.record_lost(engine, folder.name)


def _record(engine: Engine, kept: KeptMerge) -> None:
    record.record_done(engine, kept.merge, kept.result, kept.scores)


def _keep_merge(engine: Engine, store: Path, merge_id: str) -> None:
    with reading(engine).connect() as connection:
        row = connection.execute(select(Merge).where(Merge.merge_id == merge_id)).one()
        seen = connection.execute(select(Score).where(Score.merge_id == merge_id).order_by(Score.score_id)).all()
    columns = ("merge_id", "scorer_id", "prompt", "seed", "value", "floor", "ceiling", "scored_at")
    scores = [facts.Score(*(getattr(one, column) for column in columns)) for one in seen]
    merge = facts.Merge(row.merge_id, row.subject, row.style, row.method, row.recipe)
    result = facts.Result(row.night_id, row.losses, row.movement, row.seconds, row.finished_at, row.pair_seconds)
    keep_merge(store, merge, result, scores)


def _without_sidecar(engine: Engine, store: Path, adapters: set[str], nights: set[str]) -> Iterator[Fault]:
    """Adapters and nights that could not be made anew."""
    adapters = adapters - {one.adapter.sha256 for one in kept_adapters(store) if isinstance(one, KeptAdapter)}
    nights = nights - {one.night_id for one in kept_nights(store) if isinstance(one, KeptNight)}
    reason = Reason("SIDECAR_MISSING", "Only the catalogue knows it.", "with --repair its sidecar is written.")
    for sha256 in sorted(adapters):
        yield Fault(sha256, reason, partial(_keep_adapter, engine, store, sha256))
    for night_id in sorted(nights):
        yield Fault(night_id, reason, partial(_keep_night, engine, store, night_id))


def _keep_adapter(engine: Engine, store: Path, sha256: str) -> None:
    with reading(engine).connect() as connection:
        row = connection.execute(select(Adapter).where(Adapter.sha256 == sha256)).one()
        places = connection.execute(select(Alias).where(Alias.sha256 == sha256).order_by(Alias.alias_id)).all()
    aliases = [facts.Alias(one.repository, one.revision, one.file_name, sha256, one.seen_at) for one in places]
    for seen_at in (row.first_seen_at, row.last_seen_at):
        known = facts.Adapter(sha256, row.role, row.status, row.licence, row.facts, seen_at)
        keep_adapters(store, [known], aliases)


def _keep_night(engine: Engine, store: Path, night_id: str) -> None:
    with reading(engine).connect() as connection:
        row = connection.execute(select(Night).where(Night.night_id == night_id)).one()
    keep_night(store, KeptNight(row.night_id, row.settings, row.started_at, row.finished_at, row.summary))


def _adapters(store: Path, known: set[str], trash: "_Trash") -> Iterator[Fault]:
    """Copies whose bytes are not those that they are called by."""
    for sha256 in sorted(known):
        copy = store / "adapters" / sha256 / f"{sha256}.safetensors"
        if copy.is_file() and sha256_of(copy) != sha256:
            fact = f"{copy} is not the file that was downloaded."
            reason = Reason("ADAPTER_DAMAGED", fact, "with --repair it is fetched again once a merge needs it.")
            yield Fault(sha256, reason, partial(trash.move, copy))


def _calibrations(store: Path, trash: "_Trash") -> Iterator[Fault]:
    """Tensors without their facts, or facts without their tensors."""
    for path in sorted((store / "calibrations").glob("*.*")):
        other = path.with_suffix(".json" if path.suffix == ".safetensors" else ".safetensors")
        if not path.name.startswith(".") and not other.exists() and trash.is_old(path):
            fact = f"{path.name} lies in {path.parent} without {other.name}."
            reason = Reason("CALIBRATION_DAMAGED", fact, "with --repair it is made again once a merge needs it.")
            yield Fault(path.stem, reason, partial(trash.move, path))


class _Trash:
    """Where in a store things go that nobody knows, once they are old enough."""

    def __init__(self, store: Path, grace_seconds: float) -> None:
        self._store = store
        self._before = time.time() - grace_seconds
        self._folder = store / "trash" / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"

    def is_old(self, path: Path) -> bool:
        return path.stat().st_mtime <= self._before

    def move(self, path: Path) -> None:
        """Move a file or folder away, under its own name."""
        there = self._folder / path.relative_to(self._store)
        there.parent.mkdir(parents=True, exist_ok=True)
        path.replace(there)

    def unknown(self, kind: str, known: set[str]) -> Iterator[Fault]:
        """Folders of things that the catalogue has no row of."""
        for folder in sorted((self._store / kind).glob("[!.]*")):
            if folder.name not in known and not (folder / MERGE_FACTS).exists() and self.is_old(folder):
                reason = Reason("OBJECT_UNKNOWN", f"The catalogue has no row of {folder}.", _TRASH)
                yield Fault(folder.name, reason, partial(self.move, folder))

    def unfinished(self) -> Iterator[Fault]:
        """Files under temporary names, whose writer was killed."""
        for path in sorted(self._store.rglob(".????????-*")):
            if path.is_file() and self._store / "trash" not in path.parents and self.is_old(path):
                reason = Reason("UNFINISHED", f"Whoever wrote {path} was stopped.", _TRASH)
                yield Fault(path.name, reason, partial(self.move, path))

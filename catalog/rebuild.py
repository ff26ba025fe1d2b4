"""A catalogue made anew from the sidecars of a store; what these do not hold is copied from the earlier catalogue."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, Table, select, tuple_
from sqlalchemy.exc import IntegrityError

from catalog import record
from catalog.errors import CatalogueError
from catalog.facts import Merge, Reason, Result, Score
from catalog.schema import Base, reading
from catalog.sidecars import Unreadable, kept_adapters, kept_merges, kept_nights, kept_publications, kept_tombstones
from catalog.successor import successor

_ROWS_AT_A_TIME = 500
_T = TypeVar("_T")


@dataclass(frozen=True)
class Rebuilt:
    """What a new catalogue was made from."""

    nights: int
    adapters: int
    merges: int
    """Finished ones, from their sidecars."""
    publications: int
    copied: Mapping[str, int]
    """Rows of the earlier catalogue that no sidecar holds, by table."""
    left_out: tuple[tuple[str, Reason], ...]
    aside: str | None
    """Where the earlier catalogue is now."""


def rebuild(url: str, store: Path) -> Rebuilt:
    """Make the catalogue at a URL anew; the earlier one is put aside. No night may run meanwhile."""
    with successor(url) as succession:
        new, earlier = succession.new, succession.earlier
        left_out: list[tuple[str, Reason]] = []
        nights = _nights(new, store, left_out)
        adapters = _adapters(new, store, left_out)
        if earlier is None and not nights:
            sentence = f"{store} holds no night, and there is no catalogue to read. Is it the store of these settings?"
            raise CatalogueError("STORE_EMPTY", sentence)
        merges = _merges(new, store, left_out)
        publications = _publications(new, store, left_out)
        buried = list(_readable(kept_tombstones(store), left_out))
        record.record_tombstones(new, buried, [one.name for one in buried if one.kind == "adapter"])
        copied = _copied(earlier, new, left_out) if earlier is not None else {}
        return Rebuilt(nights, adapters, merges, publications, copied, tuple(left_out), succession.aside)


def _readable(kept: Iterable[_T | Unreadable], left_out: list[tuple[str, Reason]]) -> Iterator[_T]:
    """The sidecars that are whole."""
    for one in kept:
        if isinstance(one, Unreadable):
            left_out.append((str(one.path), one.reason))
        else:
            yield one


def _nights(new: Engine, store: Path, left_out: list[tuple[str, Reason]]) -> int:
    count = 0
    for night in _readable(kept_nights(store), left_out):
        record.record_night_started(new, night.night_id, night.settings, night.started_at)
        if night.finished_at is not None:
            record.record_night_finished(new, night.night_id, night.summary or {}, night.finished_at)
        count += 1
    return count


def _adapters(new: Engine, store: Path, left_out: list[tuple[str, Reason]]) -> int:
    """As they were seen first and last; of a place that held several files, the last one counts."""
    count = 0
    kept = _readable(kept_adapters(store), left_out)
    aliases = []
    while piece := list(islice(kept, _ROWS_AT_A_TIME)):
        record.record_adapters(new, [replace(one.adapter, seen_at=one.first_seen_at) for one in piece])
        record.record_adapters(new, [one.adapter for one in piece])
        aliases += [alias for one in piece for alias in one.aliases]
        count += len(piece)
    record.record_adapters(new, (), sorted(aliases, key=attrgetter("seen_at")))
    return count


def _merges(new: Engine, store: Path, left_out: list[tuple[str, Reason]]) -> int:
    count = 0
    kept = ((one.merge, one.result, one.scores) for one in _readable(kept_merges(store), left_out))
    while piece := list(islice(kept, _ROWS_AT_A_TIME)):
        try:
            record.record_all_done(new, piece)
            count += len(piece)
        except IntegrityError:
            count += sum(_merge(new, *one, left_out) for one in piece)
    return count


def _merge(
    new: Engine, merge: Merge, result: Result, scores: Sequence[Score], left_out: list[tuple[str, Reason]]
) -> bool:
    """One merge of a piece in which not all could be recorded: whether this one could."""
    try:
        record.record_all_done(new, [(merge, result, scores)])
    except IntegrityError:
        fact = "Its adapters, or its night, have no sidecar."
        left_out.append((merge.merge_id, Reason("PARENT_UNKNOWN", fact, "run a night: it finds the result.")))
        return False
    return True


def _publications(new: Engine, store: Path, left_out: list[tuple[str, Reason]]) -> int:
    count = 0
    for publication in _readable(kept_publications(store), left_out):
        try:
            record.record_publication(new, publication)
            count += 1
        except IntegrityError:
            fact = f"Merge {publication.merge_id[:12]}, which was sent there, is not finished in the store."
            left_out.append((publication.repository, Reason("PARENT_UNKNOWN", fact, "see ziplora doctor CONFIG.")))
    return count


def _copied(earlier: Engine, new: Engine, left_out: list[tuple[str, Reason]]) -> dict[str, int]:
    """Copy what can be read and is not there, parents first."""
    copied = {}
    for table in Base.metadata.sorted_tables:
        count = 0
        try:
            with reading(earlier).connect() as connection:
                for rows in connection.execute(select(table)).mappings().partitions(_ROWS_AT_A_TIME):
                    count += record.record_copies(new, table, _missing(new, table, [dict(row) for row in rows]))
        except CatalogueError as error:
            if error.code != "CATALOGUE_DAMAGED":
                raise
            fact = str(error).partition(": ")[2]
            left_out.append((f"rows of {table.name}", Reason(error.code, fact, "nothing: the others were copied.")))
        if count:
            copied[table.name] = count
    return copied


def _missing(new: Engine, table: Table, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those rows that a catalogue does not have, and could: all that they refer to is there."""
    keys = [*table.primary_key]
    with reading(new).connect() as connection:

        def there(column: Any, wanted: Iterable[Any]) -> set[Any]:
            return set(connection.scalars(select(column).where(column.in_(set(wanted)))))

        named = {tuple(row[key.name] for key in keys): row for row in rows}
        known = {tuple(row) for row in connection.execute(select(*keys).where(tuple_(*keys).in_(named)))}
        left = [row for name, row in named.items() if name not in known]
        for reference in table.foreign_keys:
            name = reference.parent.name
            parents = there(reference.column, (row[name] for row in left)) | {None}
            left = [row for row in left if row[name] in parents]
    return left

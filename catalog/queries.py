"""The questions people and the pipeline ask of a catalogue; every answer is a frozen dataclass."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Engine, and_, case, func, literal, or_, select

from catalog.errors import CatalogueError
from catalog.facts import (
    FAILURES_TO_BLOCK,
    Alias,
    Header,
    MergeStatus,
    Reason,
    Result,
    Role,
)
from catalog.schema import Adapter, Failure, Merge, Night, Publication, Refusal, Request, Score, reading
from catalog.schema import Alias as AliasRow
from catalog.schema import Header as HeaderRow


@dataclass(frozen=True)
class UsableAdapter:
    """An adapter that may be merged, with the places it was seen at, the latest first."""

    sha256: str
    role: Role
    licence: str | None
    facts: Mapping[str, Any]
    aliases: tuple[Alias, ...]


@dataclass(frozen=True)
class Trouble:
    """A refused file (its place is the item) or a failed try of a merge (its id is)."""

    word: Literal["refused", "failed"]
    item: str
    reason: Reason
    happened_at: datetime


@dataclass(frozen=True)
class OpenRequest:
    """A pair that somebody waits for."""

    subject: str
    style: str
    requested_at: datetime


def _merge_ids(engine: Engine, status: MergeStatus, among: Collection[str] | None = None) -> frozenset[str]:
    chosen = select(Merge.merge_id).where(Merge.status == status)
    if among is not None:
        chosen = chosen.where(Merge.merge_id.in_(among))
    with reading(engine).connect() as connection:
        return frozenset(connection.scalars(chosen))


def finished_merge_ids(engine: Engine, among: Collection[str] | None = None) -> frozenset[str]:
    """What a plan need not do again: of all merges, or of these."""
    return _merge_ids(engine, "done", among)


def merges_of_subject(engine: Engine, subject: str) -> dict[str, MergeStatus]:
    """The words for all merges of a subject, by their ids."""
    with reading(engine).connect() as connection:
        rows = connection.execute(select(Merge.merge_id, Merge.status).where(Merge.subject == subject))
        return {merge_id: status for merge_id, status in rows}  # noqa: C416 - rows are no pairs to mypy


def skips_of_subject(engine: Engine, subject: str) -> dict[str, Reason]:
    """Why merges of a subject are skipped, by their ids."""
    columns = (Merge.merge_id, Merge.code, Merge.fact, Merge.next_step)
    with reading(engine).connect() as connection:
        rows = connection.execute(select(*columns).where(Merge.subject == subject, Merge.status == "skipped"))
        return {merge_id: Reason(*reason) for merge_id, *reason in rows}


def running_merge_ids(engine: Engine, among: Collection[str] | None = None) -> frozenset[str]:
    """What a worker began and neither finished nor failed at: of all merges, or of these."""
    return _merge_ids(engine, "running", among)


def blocked_merge_ids(engine: Engine) -> frozenset[str]:
    """What a plan leaves out until somebody asks for the pair."""
    return _merge_ids(engine, "blocked")


def usable_adapters(engine: Engine, role: Role) -> list[UsableAdapter]:
    """The adapters of a role that may be merged, by sha256."""
    usable = select(Adapter).where(Adapter.role == role, Adapter.status == "usable").order_by(Adapter.sha256)
    seen = select(AliasRow).join(Adapter, Adapter.sha256 == AliasRow.sha256)
    seen = seen.where(Adapter.role == role, Adapter.status == "usable")
    places: dict[str, list[Alias]] = defaultdict(list)
    with reading(engine).connect() as connection:
        for row in connection.execute(seen.order_by(AliasRow.seen_at.desc(), AliasRow.alias_id)):
            places[row.sha256].append(Alias(row.repository, row.revision, row.file_name, row.sha256, row.seen_at))
        return [
            UsableAdapter(row.sha256, row.role, row.licence, row.facts, tuple(places[row.sha256]))
            for row in connection.execute(usable)
        ]


def known_headers(engine: Engine, alias_ids: Collection[str], reader: int) -> dict[str, Header]:
    """What this reader found in files at their commits, by the ids of these aliases, as far as it has read them."""
    read = select(HeaderRow).where(HeaderRow.alias_id.in_(alias_ids), HeaderRow.reader == reader)
    with reading(engine).connect() as connection:
        return {
            row.alias_id: Header(
                row.repository,
                row.revision,
                row.file_name,
                row.sha256,
                row.facts,
                Reason(row.code, row.fact, row.next_step) if row.code else None,
                row.reader,
                row.read_at,
            )
            for row in connection.execute(read)
        }


def pictures_seen(engine: Engine, merge_ids: Collection[str] | None = None) -> dict[str, set[tuple[str, int]]]:
    """Prompt and seed of every picture that a scorer has seen, by merge: of all merges, or of these."""
    pictures = select(Score.merge_id, Score.prompt, Score.seed).distinct()
    if merge_ids is not None:
        pictures = pictures.where(Score.merge_id.in_(merge_ids))
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    with reading(engine).connect() as connection:
        for merge_id, prompt, seed in connection.execute(pictures):
            seen[merge_id].add((prompt, seed))
    return seen


def failing_finished_merge_ids(engine: Engine) -> frozenset[str]:
    """Finished merges whose further pictures failed three times since somebody asked for the pair."""
    asked = and_(Request.subject == Merge.subject, Request.style == Merge.style)
    failed = select(Failure.merge_id).join(Merge, Merge.merge_id == Failure.merge_id).outerjoin(Request, asked)
    since = or_(Request.requested_at.is_(None), Failure.failed_at > Request.requested_at)
    failed = failed.where(Merge.status == "done", Failure.failed_at > Merge.finished_at, since)
    failed = failed.group_by(Failure.merge_id).having(func.count() >= FAILURES_TO_BLOCK)
    with reading(engine).connect() as connection:
        return frozenset(connection.scalars(failed))


def failures_of(engine: Engine, night_id: str) -> list[Trouble]:
    """All that a night refused or failed at, in order of time; what succeeded later included."""
    refused = select(Refusal).where(Refusal.night_id == night_id)
    failed = select(Failure).where(Failure.night_id == night_id)
    with reading(engine).connect() as connection:
        troubles = [
            Trouble("refused", _place(row), Reason(row.code, row.fact, row.next_step), row.refused_at)
            for row in connection.execute(refused)
        ]
        troubles += [
            Trouble("failed", row.merge_id, Reason(row.code, row.fact, row.next_step), row.failed_at)
            for row in connection.execute(failed)
        ]
    return sorted(troubles, key=lambda trouble: (trouble.happened_at, trouble.item))


def _place(refusal: Any) -> str:
    return f"{refusal.repository}@{refusal.revision}/{refusal.file_name}"


def open_requests(engine: Engine) -> list[OpenRequest]:
    """The pairs that go first in the next night, the longest waiting first."""
    waiting = select(Request).where(Request.closed_at.is_(None)).order_by(Request.requested_at, Request.request_id)
    with reading(engine).connect() as connection:
        return [OpenRequest(row.subject, row.style, row.requested_at) for row in connection.execute(waiting)]


def seconds_by_method(engine: Engine) -> dict[str, float]:
    """What a finished merge took on average, with its pictures and scores, by method."""
    took = func.avg(func.coalesce(Merge.pair_seconds, Merge.seconds))
    mean = select(Merge.method, took).where(Merge.status == "done").group_by(Merge.method)
    with reading(engine).connect() as connection:
        return {method: seconds for method, seconds in connection.execute(mean) if seconds is not None}


def last_finish(engine: Engine) -> datetime | None:
    """When the merge was finished that was finished last."""
    with reading(engine).connect() as connection:
        return connection.scalar(select(func.max(Merge.finished_at)))


def all_settings(engine: Engine) -> list[Mapping[str, Any]]:
    """The settings of every night there was."""
    with reading(engine).connect() as connection:
        return list(connection.scalars(select(Night.settings)))


def nights_cut_off(engine: Engine, since: datetime) -> int:
    """How many nights began after that moment and did not end, since the last one that did."""
    ended = select(func.max(Night.started_at)).where(Night.finished_at.is_not(None)).scalar_subquery()
    begun = select(func.count()).where(
        Night.started_at > since, Night.finished_at.is_(None), or_(ended.is_(None), Night.started_at > ended)
    )
    with reading(engine).connect() as connection:
        return connection.scalar(begun) or 0


def latest_settings(engine: Engine) -> Mapping[str, Any]:
    """The settings of the night that began last."""
    last = select(Night.settings).order_by(Night.started_at.desc(), Night.night_id.desc())
    with reading(engine).connect() as connection:
        settings = connection.scalar(last)
    if settings is None:
        raise CatalogueError("NO_NIGHT", "The catalogue knows of no night: run one first, with ziplora run CONFIG.")
    found: Mapping[str, Any] = settings
    return found


@dataclass(frozen=True)
class MergeOutline:
    """A merge in short."""

    merge_id: str
    subject: str
    style: str
    finished_at: datetime | None
    """None of one that is not finished."""


def merge_outlines(engine: Engine) -> list[MergeOutline]:
    """Every merge that there is or is to be."""
    finished_at = case((Merge.status == "done", Merge.finished_at))
    with reading(engine).connect() as connection:
        rows = connection.execute(select(Merge.merge_id, Merge.subject, Merge.style, finished_at))
        return [MergeOutline(*row) for row in rows]


def result_of(engine: Engine, merge_id: str) -> Result | None:
    """What a finished merge measured; None of one that is not finished."""
    columns = (Merge.night_id, Merge.losses, Merge.movement, Merge.seconds, Merge.finished_at, Merge.pair_seconds)
    with reading(engine).connect() as connection:
        row = connection.execute(select(*columns).where(Merge.merge_id == merge_id, Merge.status == "done")).first()
    return None if row is None else Result(*row)


def recipe_of(engine: Engine, merge_id: str) -> Mapping[str, Any]:
    """The recipe of a finished merge."""
    with reading(engine).connect() as connection:
        row = connection.execute(select(Merge.recipe, Merge.status).where(Merge.merge_id == merge_id)).one()
    if row.status != "done":
        raise CatalogueError("NOT_FINISHED", f"Merge {merge_id[:12]} is {row.status}. See: ziplora why {merge_id[:12]}")
    recipe: Mapping[str, Any] = row.recipe
    return recipe


def night_began(engine: Engine, moment: datetime) -> datetime | None:
    """When the night began in which something happened."""
    began = select(func.max(Night.started_at)).where(Night.started_at <= moment)
    with reading(engine).connect() as connection:
        return connection.scalar(began)


def last_offered(engine: Engine, sources: object) -> int | None:
    """How many adapters these sources offered in the last night in which all of them answered."""
    nights = select(Night.settings, Night.summary).where(Night.summary.is_not(None))
    with reading(engine).connect() as connection:
        for settings, summary in connection.execute(nights.order_by(Night.started_at.desc())):
            if settings.get("sources") == sources and summary.get("offered") is not None:
                return int(summary["offered"])
    return None


def nights_refused(engine: Engine, sha256: str, code: str, since: datetime) -> int:
    """In how many nights after a moment an adapter was refused with a code."""
    nights = select(func.count(Refusal.night_id.distinct()))
    chosen = nights.where(Refusal.sha256 == sha256, Refusal.code == code, Refusal.refused_at > since)
    with reading(engine).connect() as connection:
        return connection.scalar(chosen) or 0


@dataclass(frozen=True)
class Change:
    """Something new: its item is an adapter's sha256, a merge's id or a file's place."""

    word: Literal["found", "merged", "failed", "refused", "staged", "committed", "verified", "withdrawn"]
    item: str
    happened_at: datetime


def changes_since(engine: Engine, moment: datetime) -> list[Change]:
    """Adapters found, merges finished and failed, files refused and publications moved since, in order of time."""
    place = Refusal.repository + "@" + Refusal.revision + "/" + Refusal.file_name
    asked: tuple[tuple[Any, Any, Any], ...] = (
        (literal("found"), Adapter.sha256, Adapter.first_seen_at),
        (literal("merged"), Merge.merge_id, Merge.finished_at),
        (literal("failed"), Failure.merge_id, Failure.failed_at),
        (literal("refused"), place, Refusal.refused_at),
        (Publication.status, Publication.merge_id, Publication.changed_at),
    )
    with reading(engine).connect() as connection:
        found = [
            Change(*row)
            for word, item, at in asked
            for row in connection.execute(select(word, item, at).where(at >= moment))
        ]
    return sorted(found, key=lambda change: (change.happened_at, change.item, change.word))

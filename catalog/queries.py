"""The questions people and the pipeline ask of a catalogue; every answer is a frozen dataclass.

A ranking is for one set of scorers: each scorer's pictures give a mean position between floor and ceiling, cut to
0 … 1, and the harmonic mean of these positions is the score. A merge with a picture that one of the scorers could not
place, or has not seen, is in no ranking. Merges seen in few pictures and in many share one: their means are compared as
they are, and that of few pictures is more a matter of chance.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, Subquery, and_, case, false, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from catalog.errors import CatalogueError
from catalog.facts import (
    FAILURES_TO_BLOCK,
    STYLE_METRIC,
    SUBJECT_METRIC,
    Alias,
    Header,
    MergeStatus,
    Reason,
    Result,
    Role,
    metric_of,
)
from catalog.licence import combine
from catalog.names import adapter_names
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
class RankedMerge:
    """A finished merge and its harmonic mean: 0 like the base alone, 1 like both single LoRAs."""

    merge_id: str
    subject: str
    style: str
    method: str
    score_01: float


@dataclass(frozen=True)
class Picked:
    """A ranked merge with the names of its adapters and the licence that it carries."""

    merge: RankedMerge
    subject_name: str
    style_name: str
    licence: str | None
    """None: a licence is not known, and the merge is not for others."""


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


def running_merge_ids(engine: Engine, among: Collection[str] | None = None) -> frozenset[str]:
    """What a worker began and neither finished nor failed at: of all merges, or of these."""
    return _merge_ids(engine, "running", among)


def blocked_merge_ids(engine: Engine) -> frozenset[str]:
    """What a plan leaves out until somebody asks for the pair."""
    return _merge_ids(engine, "blocked")


def published_merge_ids(engine: Engine) -> frozenset[str]:
    """The merges that are on the Hub, checked there; those that were taken back too."""
    settled = select(Publication.merge_id).where(Publication.status.in_(("verified", "withdrawn")))
    with reading(engine).connect() as connection:
        return frozenset(connection.scalars(settled))


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


def _positions(scorers: Collection[str], chosen: ColumnElement[bool]) -> Subquery:
    """The mean position of each chosen finished merge by each scorer that placed all its pictures."""
    mean = func.avg(Score.position)
    cut = case((mean < 0.0, 0.0), (mean > 1.0, 1.0), else_=mean)
    return (
        select(Merge.merge_id, Merge.subject, Merge.style, Merge.method, cut.label("position"))
        .join(Score, Score.merge_id == Merge.merge_id)
        .where(Merge.status == "done", chosen, Score.scorer_id.in_(scorers))
        .group_by(Merge.merge_id, Merge.subject, Merge.style, Merge.method, Score.scorer_id)
        .having(func.count() == func.count(Score.position))
        .subquery()
    )


def _best(
    engine: Engine,
    scorers: Collection[str],
    chosen: ColumnElement[bool],
    per: Sequence[InstrumentedAttribute[str]],
    limit: int | None,
) -> list[RankedMerge]:
    """The best of the chosen merges for each different value of `per`, the best of all first."""
    by_scorer = _positions(scorers, chosen).c
    merge = (by_scorer.merge_id, by_scorer.subject, by_scorer.style, by_scorer.method)
    harmonic = func.count() / func.sum(1.0 / func.nullif(by_scorer.position, 0.0))
    score = case((func.min(by_scorer.position) == 0.0, 0.0), else_=harmonic).label("score_01")
    seen_by_all = func.count() == len(set(scorers))
    ranked = select(*merge, score).group_by(*merge).having(seen_by_all).subquery().c
    best_first = (ranked.score_01.desc(), ranked.merge_id)
    place = func.row_number().over(partition_by=[ranked[column.key] for column in per], order_by=best_first)
    placed = select(*ranked, place.label("place")).subquery().c
    columns = (placed.merge_id, placed.subject, placed.style, placed.method, placed.score_01)
    best = select(*columns).where(placed.place == 1).order_by(placed.score_01.desc(), placed.merge_id).limit(limit)
    with reading(engine).connect() as connection:
        return [RankedMerge(*row) for row in connection.execute(best)]


def best_styles_for(engine: Engine, subject: str, scorers: Collection[str], limit: int = 20) -> list[RankedMerge]:
    """For each style that this subject was merged with, the best merge; the best style first."""
    return _best(engine, scorers, Merge.subject == subject, (Merge.style,), limit)


def best_subjects_for(engine: Engine, style: str, scorers: Collection[str], limit: int = 20) -> list[RankedMerge]:
    """For each subject that this style was merged with, the best merge; the best subject first."""
    return _best(engine, scorers, Merge.style == style, (Merge.subject,), limit)


def best_method_per_pair(engine: Engine, scorers: Collection[str]) -> list[RankedMerge]:
    """For each pair, the merge by the method that did best."""
    return _best(engine, scorers, Merge.status == "done", (Merge.subject, Merge.style), None)


def best_merges(engine: Engine, scorers: Collection[str]) -> list[RankedMerge]:
    """Every finished merge that can be ranked, the best first."""
    return _best(engine, scorers, Merge.status == "done", (Merge.merge_id,), None)


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


def ranking_scorers(engine: Engine) -> tuple[str, ...]:
    """The scorers by which most finished merges can be ranked: one for subjects, one for styles."""
    merges = func.count(Score.merge_id.distinct())
    counted = select(Score.scorer_id, merges).join(Merge, Merge.merge_id == Score.merge_id)
    counted = counted.where(Merge.status == "done").group_by(Score.scorer_id)
    with reading(engine).connect() as connection:
        used = connection.execute(counted.order_by(merges, func.max(Score.scored_at), Score.scorer_id)).all()
    most_used = {metric_of(scorer): scorer for scorer, _ in used}
    return tuple(most_used[metric] for metric in (SUBJECT_METRIC, STYLE_METRIC) if metric in most_used)


def pick(
    engine: Engine,
    scorers: Collection[str],
    *,
    subject: str | None = None,
    style: str | None = None,
    method: str | None = None,
    licence: str | None = None,
    least_score: float = 0.0,
    limit: int = 20,
) -> list[Picked]:
    """The finished merges with these adapters (sha256), method and licence that score enough, the best first."""
    wanted = ((Merge.subject, subject), (Merge.style, style), (Merge.method, method))
    chosen = [column == value for column, value in wanted if value is not None]
    licences = _licences(engine)
    if licence is not None:
        chosen.append(_under(licence, set(licences.values())))
    ranked = _best(engine, scorers, and_(Merge.status == "done", *chosen), (Merge.merge_id,), limit)
    names = adapter_names(engine)
    return [
        Picked(merge, names[merge.subject], names[merge.style], _merged_licence(licences, merge.subject, merge.style))
        for merge in ranked
        if merge.score_01 >= least_score
    ]


def _licences(engine: Engine) -> dict[str, str | None]:
    with reading(engine).connect() as connection:
        return {row.sha256: row.licence for row in connection.execute(select(Adapter.sha256, Adapter.licence))}


def _merged_licence(licences: Mapping[str, str | None], subject: str, style: str) -> str | None:
    merged = combine(licences[subject], licences[style], allow_unknown=True)
    return None if isinstance(merged, Reason) else merged


def _under(licence: str, known: Collection[str | None]) -> ColumnElement[bool]:
    """Merges of adapters whose licences together make this one."""

    def adapters(under: str | None) -> Any:
        return select(Adapter.sha256).where(Adapter.licence == under)

    pairs = [(one, other) for one in known for other in known if one and other and combine(one, other) == licence]
    return or_(
        false(), *(and_(Merge.subject.in_(adapters(one)), Merge.style.in_(adapters(other))) for one, other in pairs)
    )


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
    """What a finished merge took on average, by method."""
    mean = select(Merge.method, func.avg(Merge.seconds)).where(Merge.status == "done").group_by(Merge.method)
    with reading(engine).connect() as connection:
        return {method: seconds for method, seconds in connection.execute(mean) if seconds is not None}


def all_settings(engine: Engine) -> list[Mapping[str, Any]]:
    """The settings of every night there was."""
    with reading(engine).connect() as connection:
        return list(connection.scalars(select(Night.settings)))


def unfinished_nights(engine: Engine, since: datetime) -> int:
    """How many nights that began after that moment have not ended."""
    begun = select(func.count()).where(Night.started_at > since, Night.finished_at.is_(None))
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
    columns = (Merge.night_id, Merge.losses, Merge.movement, Merge.seconds, Merge.finished_at)
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

"""All that is known of one adapter, pair, merge, publication or night, told in order."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, func, or_, select

from catalog.errors import CatalogueError
from catalog.facts import STYLE_METRIC, SUBJECT_METRIC, Reason, ScoreSummary, harmonic_01
from catalog.names import adapter_names, find_adapter, find_merge, short
from catalog.schema import (
    Adapter,
    Alias,
    Failure,
    Merge,
    Night,
    Publication,
    Refusal,
    Request,
    Summary,
    Tombstone,
    reading,
)


@dataclass(frozen=True)
class Event:
    """Something that happened, in one sentence."""

    happened_at: datetime
    sentence: str


@dataclass(frozen=True)
class Story:
    """One item: what it is, what became of it, and how."""

    kind: Literal["adapter", "pair", "merge", "refused file"]
    item: str
    """Its id; of a refused file the repository, of a pair both adapters."""
    name: str
    status: str
    facts: Mapping[str, Any]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class NightSummary:
    """A night in numbers."""

    night_id: str
    started_at: datetime
    finished_at: datetime | None
    done: int
    """Merges finished in it."""
    merge_seconds: float
    failed: Mapping[str, int]
    """Failed tries by code."""
    refused: Mapping[str, int]
    """Refused files by code."""
    summary: Mapping[str, Any]
    """What the flow said at its end."""


def scores_by_merge(engine: Engine, merge_id: str | None = None) -> dict[str, tuple[ScoreSummary, ...]]:
    """For each merge (or this one) the latest scorer of each metric."""
    columns = (Summary.merge_id, *(getattr(Summary, field.name) for field in fields(ScoreSummary)))
    summaries = select(*columns).order_by(Summary.scored_at, Summary.scorer_id)
    if merge_id is not None:
        summaries = summaries.where(Summary.merge_id == merge_id)
    latest: dict[str, dict[str, ScoreSummary]] = defaultdict(dict)
    with reading(engine).connect() as connection:
        for merge, *seen in connection.execute(summaries):
            summary = ScoreSummary(*seen)
            latest[merge][summary.metric] = summary
    return {merge: tuple(by_metric[metric] for metric in sorted(by_metric)) for merge, by_metric in latest.items()}


def score_01(scores: tuple[ScoreSummary, ...]) -> float | None:
    """The harmonic mean of a merge's subject and style positions, cut to 0 … 1; None when one of them is missing."""
    found = {score.metric: score.position for score in scores}
    subject, style = found.get(SUBJECT_METRIC), found.get(STYLE_METRIC)
    return None if subject is None or style is None else harmonic_01(subject, style)


def latest_night(engine: Engine) -> str | None:
    """The night that began last; None before the first."""
    with reading(engine).connect() as connection:
        return connection.scalar(select(Night.night_id).order_by(Night.started_at.desc(), Night.night_id.desc()))


def night_summary(engine: Engine, night_id: str) -> NightSummary:
    """What a night did, counted."""
    done = select(func.count(), func.sum(Merge.seconds)).where(Merge.night_id == night_id, Merge.status == "done")
    with reading(engine).connect() as connection:
        night = connection.execute(select(Night).where(Night.night_id == night_id)).first()
        if night is None:
            raise CatalogueError(
                "NIGHT_UNKNOWN", f"There was no night {night_id!a}. See the gallery for those there were."
            )
        finished, seconds = connection.execute(done).one()
        failed, refused = (
            _most_first(Counter(connection.scalars(select(table.code).where(table.night_id == night_id))))
            for table in (Failure, Refusal)
        )
    began, ended, said = night.started_at, night.finished_at, night.summary or {}
    return NightSummary(night_id, began, ended, finished, seconds or 0.0, failed, refused, said)


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


LOST_BELOW = 0.1
"""A position so near to the floor is that of the base alone."""


def lost(scores: Collection[ScoreSummary]) -> Reason | None:
    """Whether one of both adapters does not show in a merge: its pictures are as far from it as the base's."""
    for metric, code in ((SUBJECT_METRIC, "SUBJECT_LOST"), (STYLE_METRIC, "STYLE_LOST")):
        for score in scores:
            if score.metric == metric and score.position is not None and score.position < LOST_BELOW:
                fact = f"By {score.scorer_id} it is at {score.position:.2f}, between 0 of the base and 1 of the LoRA."
                return Reason(code, fact, "look at its previews; try another method.")
    return None


def story_of(engine: Engine, said: str) -> Story:
    """The story of what is meant by a name or the beginning of an id, or by two of them: `SUBJECT x STYLE`.

    It is an adapter, a merge, a repository that a merge was published to, or one that was refused.
    """
    subject, separator, style = said.replace("×", "x").partition(" x ")
    if separator:
        return pair_story(engine, find_adapter(engine, subject, "subject"), find_adapter(engine, style, "style"))
    for find, tell in ((find_adapter, adapter_story), (find_merge, merge_story), (_find_published, merge_story)):
        try:
            return tell(engine, find(engine, said))
        except CatalogueError as error:
            if error.code != "NAME_UNKNOWN":
                raise
    refused = _refusals(engine, said)
    if not refused:
        raise CatalogueError("NAME_UNKNOWN", f"Nothing is called {said!a}, and no id begins so. See: ziplora pick")
    return Story(
        "refused file", refused[-1][0], short(refused[-1][0]), "rejected", {}, tuple(event for _, event in refused)
    )


def _find_published(engine: Engine, said: str) -> str:
    """The merge that was sent to a repository, or was to be."""
    meant = or_(Publication.repository == said, Publication.repository.endswith(f"/{said}", autoescape=True))
    latest = select(Publication.merge_id).where(meant).order_by(Publication.changed_at.desc())
    with reading(engine).connect() as connection:
        merge_id = connection.scalar(latest.limit(1))
    if merge_id is None:
        raise CatalogueError("NAME_UNKNOWN", f"No merge was published to {said!a}. See: ziplora pick")
    return merge_id


def _refusals(engine: Engine, said: str, sha256: str | None = None) -> list[tuple[str, Event]]:
    """Repositories of this name, or with this file, with every time they were refused."""
    table = Refusal
    meant = [table.repository == said, table.repository.endswith(f"/{said}", autoescape=True)]
    meant += [] if sha256 is None else [table.sha256 == sha256]
    with reading(engine).connect() as connection:
        rows = connection.execute(select(table).where(or_(*meant)).order_by(table.refused_at, table.refusal_id)).all()
    return [(row.repository, Event(row.refused_at, _because(f"Refused {row.repository}", row))) for row in rows]


def _because(what: str, row: Any) -> str:
    return f"{what}: {_reason(row).code}. {row.fact} Next: {row.next_step}"


def _reason(row: Any) -> Reason:
    return Reason(row.code, row.fact, row.next_step)


def adapter_story(engine: Engine, sha256: str) -> Story:
    """Where an adapter was seen, what was refused of it, what was merged from it."""
    with reading(engine).connect() as connection:
        row = connection.execute(select(Adapter).where(Adapter.sha256 == sha256)).one()
        places = connection.execute(select(Alias).where(Alias.sha256 == sha256)).all()
        merges = select(Merge.status, func.count(), func.max(Merge.finished_at))
        mine = or_(Merge.subject == sha256, Merge.style == sha256)
        counts = connection.execute(merges.where(mine).group_by(Merge.status)).all()
    name = adapter_names(engine)[sha256]
    events = [Event(row.first_seen_at, "First seen.")]
    events += [
        Event(place.seen_at, f"Seen as {place.repository}@{place.revision}/{place.file_name}.") for place in places
    ]
    events += [event for _, event in _refusals(engine, places[0].repository if places else sha256, sha256)]
    events += _takedowns(engine, [sha256, *(place.repository for place in places)])
    events += [
        Event(finished or row.last_seen_at, f"{count} merges are {status}.") for status, count, finished in counts
    ]
    facts = {"role": row.role, "licence": row.licence, **row.facts}
    return Story("adapter", sha256, name, row.status, facts, _in_order(events))


def pair_story(engine: Engine, subject: str, style: str) -> Story:
    """Who asked for a subject in a style, and what became of each of its merges."""
    asked = select(Request).where(Request.subject == subject, Request.style == style)
    made = select(Merge).where(Merge.subject == subject, Merge.style == style).order_by(Merge.method, Merge.merge_id)
    with reading(engine).connect() as connection:
        request = connection.execute(asked).first()
        merges = connection.execute(made).all()
    events = [Event(request.requested_at, "Asked for.")] if request else []
    events += [Event(request.closed_at, "All its merges are done.")] if request and request.closed_at else []
    for row in merges:
        told = merge_story(engine, row.merge_id).events
        events += [Event(event.happened_at, f"{row.method}: {event.sentence}") for event in told]
    counts = Counter(row.status for row in merges)
    status = ", ".join(f"{word} ({count})" for word, count in _most_first(counts).items()) or "not planned"
    facts = {
        f"{row.method} {row.merge_id[:12]}": _because(row.status, row) if row.code else row.status for row in merges
    }
    names = adapter_names(engine)
    return Story("pair", f"{subject} x {style}", f"{names[subject]} × {names[style]}", status, facts, _in_order(events))


def merge_story(engine: Engine, merge_id: str) -> Story:
    """How a merge came about: tries, result, scores, publications."""
    names = adapter_names(engine)
    with reading(engine).connect() as connection:
        row = connection.execute(select(Merge).where(Merge.merge_id == merge_id)).one()
        events = _failures(connection, merge_id) + _publications(connection, merge_id)
        parents = select(Adapter.sha256).where(Adapter.sha256.in_((row.subject, row.style)), Adapter.status == "gone")
        gone = sorted(names[sha256] for sha256 in connection.scalars(parents))
    scores = scores_by_merge(engine, merge_id).get(merge_id, ())
    if row.finished_at is not None:
        took = f"Merged in {row.seconds or 0:.1f} s; the coefficients moved by {row.movement or 0:.3g}."
        events.append(Event(row.finished_at, took))
    events += [
        Event(score.scored_at, f"{score.scorer_id}: {_placed(score)}, {score.pictures} pictures.") for score in scores
    ]
    facts = {"subject": row.subject, "style": row.style, "method": row.method, "recipe": row.recipe}
    facts |= {"score_01": score_01(scores), "night": row.night_id, "attempts": row.attempts}
    if gone:
        facts |= {"sources_gone": gone}
    if flag := lost(scores):
        facts |= {"flag": flag.code}
    if row.code is not None:
        facts |= vars(_reason(row))
    name = f"{names[row.subject]} × {names[row.style]} · {row.method}"
    return Story("merge", merge_id, name, row.status, facts, _in_order(events))


def _takedowns(engine: Engine, names: Collection[str]) -> list[Event]:
    meant = func.lower(Tombstone.name).in_({name.casefold() for name in names})
    with reading(engine).connect() as connection:
        rows = connection.execute(select(Tombstone).where(meant)).all()
    return [Event(row.buried_at, f"Taken down, the {row.kind} {row.name}: {row.why}.") for row in rows]


def _placed(score: ScoreSummary) -> str:
    return f"not placed ({score.reason})" if score.position is None else f"position {score.position:.2f}"


def _failures(connection: Connection, merge_id: str) -> list[Event]:
    rows = connection.execute(select(Failure).where(Failure.merge_id == merge_id))
    return [Event(row.failed_at, _because("Failed", row)) for row in rows]


def _publications(connection: Connection, merge_id: str) -> list[Event]:
    rows = connection.execute(select(Publication).where(Publication.merge_id == merge_id))
    return [Event(row.changed_at, f"{row.repository}: {row.status} {row.commit or ''}".strip() + ".") for row in rows]


def _in_order(events: list[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: (event.happened_at, event.sentence)))

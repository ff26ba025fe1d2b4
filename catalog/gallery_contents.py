"""What a gallery shows, read from the catalogue: adapters, pairs with their merges, what was refused, the nights."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, or_, select

from catalog.facts import STYLE_METRIC, SUBJECT_METRIC, TAKEN_DOWN, TEXT_METRIC, Reason, Role, ScoreSummary
from catalog.gallery_plots import Curve, Moved, curve_of, moved_by
from catalog.licence import combine
from catalog.names import one_line, page_of, short
from catalog.schema import Adapter, Alias, Merge, Night, Publication, Refusal, reading
from catalog.story import NightSummary, night_summary, score_01, scores_by_merge

_LABELS = {SUBJECT_METRIC: "subject", STYLE_METRIC: "style", TEXT_METRIC: "text"}
_NIGHTS_SHOWN = 14


@dataclass(frozen=True)
class ShownAdapter:
    """A LoRA with the name, place and licence that people see."""

    sha256: str
    role: Role
    name: str
    repository: str
    revision: str
    licence: str | None
    prompt: str
    rank: str

    @property
    def url(self) -> str | None:
        """Its page on the Hub, if it has one."""
        return page_of(self.repository, self.revision)


@dataclass(frozen=True)
class ShownMerge:
    """One merge of a pair by one method."""

    merge_id: str
    method: str
    status: str
    score_01: float | None
    scores: tuple[tuple[str, ScoreSummary], ...]
    """With what each is held against, in words."""
    recipe: str
    seconds: float | None
    movement: float | None
    curve: Curve | None
    moved: tuple[Moved, ...]
    distances: tuple[tuple[str, float, float], ...]
    """From what either LoRA does alone: whose, by the direct merge, and by this one."""
    reason: Reason | None
    published: tuple[str, str, str] | None
    """Repository, commit, and the folder in a collection."""


@dataclass(frozen=True)
class ShownPair:
    """A subject in a style; the best merge comes first."""

    subject: ShownAdapter
    style: ShownAdapter
    merges: tuple[ShownMerge, ...]
    licence: str | None

    @property
    def page(self) -> str:
        """The name of its page, which stays the same from night to night."""
        return f"{self.subject.sha256[:16]}-{self.style.sha256[:16]}.html"

    @property
    def licence_shown(self) -> str:
        """The licence, or that there is none."""
        return self.licence or "not known"

    @property
    def done(self) -> tuple[ShownMerge, ...]:
        return tuple(merge for merge in self.merges if merge.status == "done")


@dataclass(frozen=True)
class Trouble:
    """What one code kept from being merged."""

    code: str
    items: tuple[tuple[str, Reason], ...]


@dataclass(frozen=True)
class Contents:
    """All of it."""

    subjects: tuple[ShownAdapter, ...]
    styles: tuple[ShownAdapter, ...]
    pairs: Mapping[tuple[str, str], ShownPair]
    """By the sha256 of subject and style."""
    methods: tuple[str, ...]
    licences: tuple[str, ...]
    """Of the finished merges, with `not known` where one of them has none."""
    refused: tuple[Trouble, ...]
    """Files, as the latest night that looked at them saw them."""
    failed: tuple[Trouble, ...]
    """Merges that are failed, blocked or skipped now."""
    nights: tuple[NightSummary, ...]
    """The latest first."""


def read_contents(engine: Engine) -> Contents:
    """The catalogue at this moment."""
    scores = scores_by_merge(engine)
    with reading(engine).connect() as connection:
        adapters = _adapters(connection)
        published = _published(connection)
        merges: dict[tuple[str, str], list[ShownMerge]] = defaultdict(list)
        stands = or_(Merge.code.is_(None), Merge.code != TAKEN_DOWN.code)
        for row in connection.execute(select(Merge).where(stands).order_by(Merge.merge_id)):
            merge = _shown_merge(row, scores.get(row.merge_id, ()), published.get(row.merge_id))
            merges[row.subject, row.style].append(merge)
        refused = _refused(connection)
        newest = select(Night.night_id).order_by(Night.started_at.desc(), Night.night_id.desc()).limit(_NIGHTS_SHOWN)
        nights = list(connection.scalars(newest))
    pairs = {pair: _shown_pair(adapters[pair[0]], adapters[pair[1]], found) for pair, found in merges.items()}
    shown = {sha256 for pair in pairs for sha256 in pair}
    by_name = sorted((adapters[sha256] for sha256 in shown), key=lambda one: (one.name.casefold(), one.sha256))
    return Contents(
        subjects=tuple(one for one in by_name if one.role == "subject"),
        styles=tuple(one for one in by_name if one.role == "style"),
        pairs=pairs,
        methods=tuple(sorted({merge.method for pair in pairs.values() for merge in pair.done})),
        licences=tuple(sorted({pair.licence_shown for pair in pairs.values() if pair.done})),
        refused=refused,
        failed=_failed(pairs.values()),
        nights=tuple(night_summary(engine, night) for night in nights),
    )


def _adapters(connection: Connection) -> dict[str, ShownAdapter]:
    places = {row.sha256: row for row in connection.execute(select(Alias).order_by(Alias.seen_at, Alias.alias_id))}
    found = {}
    for row in connection.execute(select(Adapter)):
        place = places.get(row.sha256)
        repository = one_line(place.repository) if place else ""
        found[row.sha256] = ShownAdapter(
            sha256=row.sha256,
            role=row.role,
            name=short(repository) or row.sha256[:12],
            repository=repository,
            revision=place.revision if place else "",
            licence=row.licence,
            prompt=one_line(str(row.facts.get("prompt") or "")),
            rank=one_line(str(row.facts.get("rank") or "")),
        )
    return found


def _published(connection: Connection) -> dict[str, tuple[str, str, str]]:
    rows = connection.execute(select(Publication).where(Publication.status.in_(("committed", "verified"))))
    return {row.merge_id: (row.repository, row.commit, row.folder) for row in rows if row.commit}


def _shown_merge(row: Any, scores: Sequence[ScoreSummary], published: tuple[str, str, str] | None) -> ShownMerge:
    order = list(_LABELS)
    known = sorted((score for score in scores if score.metric in _LABELS), key=lambda score: order.index(score.metric))
    return ShownMerge(
        merge_id=row.merge_id,
        method=one_line(row.method),
        status=row.status,
        score_01=score_01(tuple(scores)),
        scores=tuple((_LABELS[score.metric], score) for score in known),
        recipe=json.dumps(row.recipe, indent=2, sort_keys=True),
        seconds=row.seconds,
        movement=row.movement,
        curve=curve_of(row.losses),
        moved=moved_by(row.losses),
        distances=_distances(row.losses or {}),
        reason=_reason(row) if row.code and row.status != "done" else None,
        published=published,
    )


def _distances(losses: Mapping[str, Any]) -> tuple[tuple[str, float, float], ...]:
    """Those that were measured before and after."""
    found = ((name, losses.get(f"first_{name}"), losses.get(f"last_{name}")) for name in ("subject", "style", "joint"))
    return tuple((name, a, b) for name, a, b in found if isinstance(a, float) and isinstance(b, float))


def _reason(row: Any) -> Reason:
    return Reason(one_line(row.code), one_line(row.fact), one_line(row.next_step))


def _shown_pair(subject: ShownAdapter, style: ShownAdapter, merges: list[ShownMerge]) -> ShownPair:
    licence = combine(subject.licence, style.licence, allow_unknown=True)
    best_first = sorted(
        merges,
        key=lambda merge: (merge.status != "done", -(-1 if merge.score_01 is None else merge.score_01), merge.method),
    )
    return ShownPair(subject, style, tuple(best_first), None if isinstance(licence, Reason) else licence)


def _refused(connection: Connection) -> tuple[Trouble, ...]:
    """Each file by the last reason it was refused for, unless it is usable by now."""
    usable = set(connection.scalars(select(Adapter.sha256).where(Adapter.status == "usable")))
    latest: dict[tuple[str, str], Any] = {}
    for row in connection.execute(select(Refusal).order_by(Refusal.refused_at, Refusal.refusal_id)):
        latest[row.repository, row.file_name] = row
    return _by_code(
        (f"{one_line(row.repository)}/{one_line(row.file_name)}".rstrip("/"), _reason(row))
        for row in latest.values()
        if row.sha256 not in usable
    )


def _failed(pairs: Any) -> tuple[Trouble, ...]:
    return _by_code(
        (f"{pair.subject.name} × {pair.style.name} · {merge.method} ({merge.status})", merge.reason)
        for pair in pairs
        for merge in pair.merges
        if merge.reason is not None
    )


def _by_code(items: Any) -> tuple[Trouble, ...]:
    """The commonest code first."""
    groups: dict[str, list[tuple[str, Reason]]] = defaultdict(list)
    for item, reason in items:
        groups[reason.code].append((item, reason))
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(Trouble(code, tuple(sorted(found, key=lambda one: one[0]))) for code, found in ordered)

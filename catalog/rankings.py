"""Which merges are best: by one scorer of subjects and one of styles, never by a mixture.

Each of the two scorers gives the mean position of a merge's pictures between floor and ceiling, cut to 0 … 1, and the
harmonic mean of both is the score. A merge with a picture that one of the scorers could not place, or has not seen, is
in no ranking. Merges seen in few pictures and in many share one: their means are compared as they are, and that of few
pictures is more a matter of chance.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, Engine, Select, and_, false, func, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, aliased

from catalog.facts import STYLE_METRIC, SUBJECT_METRIC, TEXT_METRIC, metric_of
from catalog.licence import merged_licences
from catalog.names import adapter_names
from catalog.schema import Adapter, Merge, Publication, Ranking, Summary, reading

_SubjectFile, _StyleFile = aliased(Adapter), aliased(Adapter)
_Merges = Select[Any]
_ROWS_AT_A_TIME = 1000
_Licences = Mapping[tuple[str | None, str | None], str]
"""What a merge carries, by the licences of its subject and its style."""
_RANK = _SubjectFile.facts["rank"].as_integer() + _StyleFile.facts["rank"].as_integer()
_SIZE_BYTES = _SubjectFile.facts["size_bytes"].as_integer() + _StyleFile.facts["size_bytes"].as_integer()


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
    """A ranked merge with all that people choose by."""

    merge: RankedMerge
    subject_name: str
    style_name: str
    licence: str | None
    """None: a licence is not known, and the merge is not for others."""
    subject_position: float
    style_position: float
    text_position: float | None
    """None: no scorer has placed all its pictures by their prompts."""
    rank: int | None
    """Of both adapters together, which is that of the merge."""
    size_bytes: int | None
    finished_at: datetime


class Wanted(TypedDict, total=False):
    """What a merge has to be to be picked; what is not given may be anything."""

    subject: str | None
    """The sha256 of the adapter."""
    style: str | None
    method: str | None
    licence: str | None
    """That of the merge."""
    least_score: float
    least_subject: float | None
    """A position, as of the other two."""
    least_style: float | None
    least_text: float | None
    most_rank: int | None
    most_bytes: int | None
    since: datetime | None
    """When it was finished."""
    publishable: bool
    """It may leave this machine, and has not left it yet."""


def _by(scorers: Collection[str]) -> ColumnElement[bool]:
    """The ranking of these two scorers; no merge at all if they are not one of subjects and one of styles."""
    by_metric = {metric_of(scorer): scorer for scorer in scorers}
    if set(by_metric) != {SUBJECT_METRIC, STYLE_METRIC} or set(by_metric.values()) != set(scorers):
        return false()
    return and_(Ranking.subject_scorer == by_metric[SUBJECT_METRIC], Ranking.style_scorer == by_metric[STYLE_METRIC])


def _ranked(scorers: Collection[str]) -> _Merges:
    """The finished merges in the ranking of these scorers."""
    # No join: Postgres goes through all merges for each ranking as long as it takes tables that grow for small ones.
    status = select(Merge.status).where(Merge.merge_id == Ranking.merge_id).correlate(Ranking).scalar_subquery()
    merge = select(Ranking.merge_id, Ranking.subject, Ranking.style, Ranking.method, Ranking.score_01)
    return merge.where(_by(scorers), status == "done")


def _best_first(merges: _Merges) -> _Merges:
    return merges.order_by(Ranking.score_01.desc(), Ranking.merge_id)


def _best(
    engine: Engine,
    scorers: Collection[str],
    chosen: ColumnElement[bool],
    per: Sequence[InstrumentedAttribute[str]],
    limit: int | None,
) -> list[RankedMerge]:
    """The best of the chosen merges for each different value of `per`, the best of all first."""
    place = func.row_number().over(partition_by=per, order_by=(Ranking.score_01.desc(), Ranking.merge_id))
    placed = _ranked(scorers).where(chosen).add_columns(place.label("place")).subquery().c
    columns = (placed.merge_id, placed.subject, placed.style, placed.method, placed.score_01)
    best = select(*columns).where(placed.place == 1).order_by(placed.score_01.desc(), placed.merge_id).limit(limit)
    with reading(engine).connect() as connection:
        return [RankedMerge(*row) for row in connection.execute(best)]


def best_styles_for(engine: Engine, subject: str, scorers: Collection[str], limit: int = 20) -> list[RankedMerge]:
    """For each style that this subject was merged with, the best merge; the best style first."""
    return _best(engine, scorers, Ranking.subject == subject, (Ranking.style,), limit)


def best_subjects_for(engine: Engine, style: str, scorers: Collection[str], limit: int = 20) -> list[RankedMerge]:
    """For each subject that this style was merged with, the best merge; the best subject first."""
    return _best(engine, scorers, Ranking.style == style, (Ranking.subject,), limit)


def best_method_per_pair(engine: Engine, scorers: Collection[str]) -> list[RankedMerge]:
    """For each pair, the merge by the method that did best."""
    return _best(engine, scorers, true(), (Ranking.subject, Ranking.style), None)


def best_merges(engine: Engine, scorers: Collection[str]) -> Iterator[RankedMerge]:
    """Every finished merge that can be ranked, the best first, as far as somebody asks."""
    with reading(engine).connect() as connection:
        ranked = _best_first(_ranked(scorers)).execution_options(yield_per=_ROWS_AT_A_TIME)
        for row in connection.execute(ranked):
            yield RankedMerge(*row)


def ranking_scorers(engine: Engine) -> tuple[str, ...]:
    """The scorers by which most merges can be ranked: one for subjects, one for styles."""
    pair = (Ranking.subject_scorer, Ranking.style_scorer)
    used = select(*pair).group_by(*pair).order_by(func.count().desc(), *pair).limit(1)
    with reading(engine).connect() as connection:
        return tuple(connection.execute(used).first() or ())


def text_scorer(engine: Engine) -> str | None:
    """The scorer that held the merge finished last against its prompts."""
    seen = select(Summary.scorer_id).join(Merge, Merge.merge_id == Summary.merge_id)
    seen = seen.where(
        func.substr(Summary.scorer_id, 1, len(TEXT_METRIC)) == TEXT_METRIC, Merge.finished_at.is_not(None)
    )
    with reading(engine).connect() as connection:
        return connection.scalar(seen.order_by(Merge.finished_at.desc(), Summary.scored_at.desc()).limit(1))


def pick(engine: Engine, scorers: Collection[str], limit: int | None = 20, **wanted: Unpack[Wanted]) -> list[Picked]:
    """The finished merges that are as wanted, the best first."""
    licences = _licences(engine)
    merges = _best_first(_with_facts(engine, scorers).where(*_filters(wanted, licences))).limit(limit)
    return list(_picked(engine, merges, licences))


def pareto_front(engine: Engine, scorers: Collection[str], **wanted: Unpack[Wanted]) -> list[Picked]:
    """Of the merges that are as wanted, those that no other beats: none is better in one position and worse in none.

    A merge whose text position is not known is in no front.
    """
    licences = _licences(engine)
    merges = _with_facts(engine, scorers).where(*_filters(wanted, licences), Summary.position.is_not(None))
    order = (Ranking.subject_position.desc(), Ranking.style_position.desc(), Summary.position.desc(), Merge.merge_id)
    front: list[Picked] = []
    for one in _picked(engine, merges.order_by(*order), licences):
        if not any(_beats(other, one) for other in front):
            front.append(one)
    return sorted(front, key=lambda one: (-one.merge.score_01, one.merge.merge_id))


def _positions(one: Picked) -> tuple[float, ...]:
    return (one.subject_position, one.style_position, one.text_position or 0.0)


def _beats(one: Picked, other: Picked) -> bool:
    mine, others = _positions(one), _positions(other)
    return mine != others and all(left >= right for left, right in zip(mine, others, strict=True))


def _with_facts(engine: Engine, scorers: Collection[str]) -> _Merges:
    """Ranked merges with what else people choose by."""
    text = and_(Summary.merge_id == Merge.merge_id, Summary.scorer_id == text_scorer(engine))
    merges = _ranked(scorers).join(Merge, Merge.merge_id == Ranking.merge_id).outerjoin(Summary, text)
    merges = merges.join(_SubjectFile, _SubjectFile.sha256 == Ranking.subject)
    merges = merges.join(_StyleFile, _StyleFile.sha256 == Ranking.style)
    licences = (_SubjectFile.licence.label("subject_licence"), _StyleFile.licence.label("style_licence"))
    positions = (Ranking.subject_position, Ranking.style_position, Summary.position)
    return merges.add_columns(*licences, *positions, _RANK.label("rank"), _SIZE_BYTES, Merge.finished_at)


def _picked(engine: Engine, merges: _Merges, licences: _Licences) -> Iterator[Picked]:
    names = adapter_names(engine)
    with reading(engine).connect() as connection:
        for *merge, subject_licence, style_licence, on_subject, on_style, on_text, rank, size, at in connection.execute(
            merges
        ):
            ranked = RankedMerge(*merge)
            licence = licences.get((subject_licence, style_licence))
            labels = (names[ranked.subject], names[ranked.style])
            yield Picked(ranked, *labels, licence, on_subject, on_style, on_text, rank, size, at)


def _licences(engine: Engine) -> _Licences:
    """Those of all pairs of licences that are in the catalogue and can be kept together."""
    with reading(engine).connect() as connection:
        return merged_licences(list(connection.scalars(select(Adapter.licence).distinct())))


def _filters(wanted: Wanted, licences: _Licences) -> Iterator[ColumnElement[bool]]:
    """One condition for each thing that is wanted."""
    equal = ((Ranking.subject, "subject"), (Ranking.style, "style"), (Ranking.method, "method"))
    least: tuple[tuple[Any, str], ...] = (
        (Ranking.score_01, "least_score"),
        (Ranking.subject_position, "least_subject"),
        (Ranking.style_position, "least_style"),
        (Summary.position, "least_text"),
        (Merge.finished_at, "since"),
    )
    most = ((_RANK, "most_rank"), (_SIZE_BYTES, "most_bytes"))
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    yield from (column == given[name] for column, name in equal if name in given)
    yield from (column >= given[name] for column, name in least if name in given)
    yield from (column <= given[name] for column, name in most if name in given)
    if "licence" in given:
        yield _under(pair for pair, licence in licences.items() if licence == given["licence"])
    if given.get("publishable"):
        yield _under(licences)
        settled = Publication.status.in_(("verified", "withdrawn"))
        yield ~select(Publication).where(Publication.merge_id == Merge.merge_id, settled).exists()


def _under(pairs: Iterable[tuple[str | None, str | None]]) -> ColumnElement[bool]:
    """Merges of adapters under these pairs of licences."""
    both = (and_(_SubjectFile.licence == subject, _StyleFile.licence == style) for subject, style in pairs)
    return or_(false(), *both)

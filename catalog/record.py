"""The only writer of a catalogue: one function per kind of fact, each one transaction, each safe to call twice."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Engine, Table, bindparam, case, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from catalog import facts, schema

_NOT_FINAL = ("planned", "running", "failed", "skipped")
"""The words that a plan, a start or a skip may replace: `done` changes when files are lost, `blocked` when asked."""
_REASON = ("code", "fact", "next_step")

Row = dict[str, Any]


@cache
def _insert(dialect_name: str, model: type[schema.Base], change: tuple[str, ...]) -> Any:
    """A statement that inserts a row, or changes these columns of the row that has its key.

    `excluded` has all columns of its table made anew: that was a quarter of the time to record a merge.
    """
    table = cast(Table, model.__table__)
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    statement = dialect.insert(table)
    if not change:
        return statement.on_conflict_do_nothing(index_elements=[*table.primary_key])
    replaced = {column: statement.excluded[column] for column in change}
    return statement.on_conflict_do_update(index_elements=[*table.primary_key], set_=replaced)


def _put(
    connection: Connection, model: type[schema.Base], rows: Mapping[Any, Row], change: tuple[str, ...] = ()
) -> None:
    """Insert rows by their keys, and of those that are there change these columns.

    They go in by the order of their keys, so that two writers with the same rows wait for each other in turn.
    """
    if rows:
        connection.execute(_insert(connection.dialect.name, model, change), [rows[key] for key in sorted(rows)])


def _put_new(connection: Connection, model: type[schema.Base], row: Row) -> bool:
    """Insert a row unless it is there: whether it was new."""
    statement = _insert(connection.dialect.name, model, ())
    return connection.execute(statement.returning(*model.__table__.primary_key), row).first() is not None


def _change_merge(connection: Connection, merge_id: str, words: Collection[str], **values: Any) -> bool:
    """Set these columns if the merge has one of these words, and nobody took it down: whether it was so."""
    merge = schema.Merge
    chosen = update(merge).where(merge.merge_id == merge_id, merge.status.in_(words), _stands())
    return connection.execute(chosen.values(values)).rowcount == 1


def _change_merges(
    connection: Connection,
    reasons: Mapping[str, facts.Reason | None],
    words: Collection[str],
    status: facts.MergeStatus,
) -> None:
    """The same of many, by their ids: each gets this word, and a reason or none."""
    merge = schema.Merge
    had = or_(*(merge.status == word for word in words))  # of many rows at once, there is no IN
    told: Row = {name: bindparam(name) for name in _REASON}
    chosen = update(merge).where(merge.merge_id == bindparam("changed_id"), had, _stands())
    rows = [{"changed_id": merge_id, **_parts(reasons[merge_id])} for merge_id in sorted(reasons)]
    if rows:
        connection.execute(chosen.values(status=status, **told), rows)


def _parts(reason: facts.Reason | None) -> Row:
    return vars(reason) if reason else dict.fromkeys(_REASON)


def _stands() -> ColumnElement[bool]:
    """That a merge was not taken down: a worker that is at it still does not bring it back."""
    return or_(schema.Merge.code.is_(None), schema.Merge.code != facts.TAKEN_DOWN.code)


def _merge_row(merge: facts.Merge, status: facts.MergeStatus) -> Row:
    return {
        "merge_id": merge.merge_id,
        "subject": merge.subject,
        "style": merge.style,
        "method": merge.method,
        "recipe": merge.recipe,
        "status": status,
        "attempts": 0,
    }


def _score_row(score: facts.Score) -> Row:
    derived = {"score_id": score.score_id, "position": score.position, "reason": score.unranked_because}
    return {**vars(score), **derived}


def record_night_started(engine: Engine, night_id: str, settings: Mapping[str, Any], started_at: datetime) -> None:
    """A night began; a second start of the same night changes nothing."""
    row = {"night_id": night_id, "settings": settings, "started_at": started_at}
    with engine.begin() as connection:
        _put_new(connection, schema.Night, row)


def record_night_finished(engine: Engine, night_id: str, summary: Mapping[str, Any], finished_at: datetime) -> None:
    """A night that was started has ended; the last word counts."""
    night = schema.Night
    with engine.begin() as connection:
        connection.execute(
            update(night).where(night.night_id == night_id).values(summary=summary, finished_at=finished_at)
        )
        _count_roughly(connection)


def record_batch(engine: Engine, batch: facts.Batch) -> None:
    """A batch of a night that was started has ended; its first end counts."""
    row = {"batch_id": facts.key(batch.night_id, batch.number), **vars(batch)}
    with engine.begin() as connection:
        _put_new(connection, schema.Batch, row)


def _count_roughly(connection: Connection) -> None:
    """Tell SQLite how its tables have grown, a matter of milliseconds: else it chooses indexes that suit small ones."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA analysis_limit=1000")
        connection.exec_driver_sql("ANALYZE")


def record_adapters(engine: Engine, adapters: Collection[facts.Adapter], aliases: Collection[facts.Alias] = ()) -> None:
    """A scan saw these files at these places; what it saw last counts."""
    rows = {
        adapter.sha256: {
            "sha256": adapter.sha256,
            "role": adapter.role,
            "status": adapter.status,
            "licence": adapter.licence,
            "facts": adapter.facts,
            "first_seen_at": adapter.seen_at,
            "last_seen_at": adapter.seen_at,
        }
        for adapter in adapters
    }
    places = {alias.alias_id: {"alias_id": alias.alias_id, **vars(alias)} for alias in aliases}
    with engine.begin() as connection:
        _put(connection, schema.Adapter, rows, ("role", "status", "licence", "facts", "last_seen_at"))
        _put(connection, schema.Alias, places, ("sha256", "seen_at"))


def record_gone(engine: Engine, sha256: str) -> None:
    """The Hub has this adapter no more; a scan that sees it again says so."""
    with engine.begin() as connection:
        connection.execute(update(schema.Adapter).where(schema.Adapter.sha256 == sha256).values(status="gone"))


def record_headers(engine: Engine, headers: Collection[facts.Header]) -> None:
    """These files were read, maybe not for the first time: the last reader counts."""
    rows = {header.alias_id: {"alias_id": header.alias_id, **_reasoned(header)} for header in headers}
    with engine.begin() as connection:
        changed = ("sha256", "facts", *_REASON, "reader", "read_at")
        _put(connection, schema.Header, rows, changed)


def _reasoned(fact: facts.Header | facts.Refusal) -> Row:
    """All that a fact holds, with the parts of its reason beside the rest."""
    return {name: value for name, value in vars(fact).items() if name != "reason"} | _parts(fact.reason)


def record_refusals(engine: Engine, refusals: Collection[facts.Refusal]) -> None:
    """A night would not take these files; the same reason for the same file in the same night is one row."""
    rows = {refusal.refusal_id: {"refusal_id": refusal.refusal_id, **_reasoned(refusal)} for refusal in refusals}
    with engine.begin() as connection:
        _put(connection, schema.Refusal, rows)


def record_plan(engine: Engine, merges: Collection[facts.Merge]) -> None:
    """These merges are to be done: new ones and skipped ones become `planned`, the others keep their word."""
    rows = {merge.merge_id: _merge_row(merge, "planned") for merge in merges}
    with engine.begin() as connection:
        _put(connection, schema.Merge, rows)
        _change_merges(connection, dict.fromkeys(rows), ("skipped",), "planned")


def record_skipped(engine: Engine, skipped: Collection[tuple[facts.Merge, facts.Reason]]) -> None:
    """Policy leaves these merges out, each for a reason that people can read."""
    with engine.begin() as connection:
        _put(connection, schema.Merge, {one.merge_id: _merge_row(one, "skipped") for one, _ in skipped})
        _change_merges(connection, {one.merge_id: reason for one, reason in skipped}, _NOT_FINAL, "skipped")


def record_running(engine: Engine, merge: facts.Merge, night_id: str) -> None:
    """A worker began this merge."""
    with engine.begin() as connection:
        _put_new(connection, schema.Merge, _merge_row(merge, "running"))
        _change_merge(connection, merge.merge_id, _NOT_FINAL, status="running", night_id=night_id)


def record_done(engine: Engine, merge: facts.Merge, result: facts.Result, scores: Collection[facts.Score] = ()) -> bool:
    """A merge is finished, and scored if it can be. The first result counts: whether this was it."""
    with engine.begin() as connection:
        _put_new(connection, schema.Merge, _merge_row(merge, "running"))
        first = _change_merge(
            connection,
            merge.merge_id,
            (*_NOT_FINAL, "blocked"),
            status="done",
            attempts=0,
            code=None,
            fact=None,
            next_step=None,
            **vars(result),
        )
        _put_scores(connection, scores)
    return first


def record_all_done(
    engine: Engine, finished: Sequence[tuple[facts.Merge, facts.Result, Collection[facts.Score]]]
) -> None:
    """Many merges are finished that this catalogue knows nothing of: the same in one transaction."""
    merges = {merge.merge_id: {**_merge_row(merge, "done"), **vars(result)} for merge, result, _ in finished}
    scores = {score.score_id: _score_row(score) for *_, seen in finished for score in seen}
    with engine.begin() as connection:
        _put(connection, schema.Merge, merges)
        _put(connection, schema.Score, scores)
        _summarise(connection, [score for *_, seen in finished for score in seen])
        for merge, *_ in finished:
            _rank(connection, vars(merge))


def record_lost(engine: Engine, merge_id: str) -> None:
    """The files of a finished merge are gone or damaged: it is to be done again."""
    with engine.begin() as connection:
        _change_merge(connection, merge_id, ("done",), status="planned")


def record_failed(engine: Engine, merge: facts.Merge, reason: facts.Reason, night_id: str, failed_at: datetime) -> None:
    """A try failed. Once a night counts; three make the merge `blocked`, and a finished merge stays finished."""
    failure = {
        "failure_id": facts.key(merge.merge_id, night_id),
        "merge_id": merge.merge_id,
        "night_id": night_id,
        **vars(reason),
        "failed_at": failed_at,
    }
    attempts = schema.Merge.attempts + 1
    with engine.begin() as connection:
        _put_new(connection, schema.Merge, _merge_row(merge, "running"))
        if not _put_new(connection, schema.Failure, failure):
            return
        _change_merge(
            connection,
            merge.merge_id,
            (*_NOT_FINAL, "blocked"),
            status=case((attempts >= facts.FAILURES_TO_BLOCK, "blocked"), else_="failed"),
            attempts=attempts,
            night_id=night_id,
            **vars(reason),
        )


def record_interrupted(engine: Engine, merge_id: str) -> None:
    """A worker that began this merge was stopped, which tells nothing of the merge: it is `planned` again."""
    with engine.begin() as connection:
        _change_merge(connection, merge_id, ("running",), status="planned")


def record_crashed(engine: Engine, merge_id: str, reason: facts.Reason, night_id: str, failed_at: datetime) -> bool:
    """The process died while it did this merge: whether the catalogue had it as running.

    Every such try counts, those of one night too; the third makes the merge `blocked`.
    """
    merge = schema.Merge
    attempts = merge.attempts + 1
    status = case((attempts >= facts.FAILURES_TO_BLOCK, "blocked"), else_="failed")
    with engine.begin() as connection:
        if not _change_merge(connection, merge_id, ("running",), status=status, attempts=attempts, **vars(reason)):
            return False
        tries = connection.scalar(select(merge.attempts).where(merge.merge_id == merge_id))
        failure = {
            "failure_id": facts.key(merge_id, night_id, tries or 0),
            "merge_id": merge_id,
            "night_id": night_id,
            **vars(reason),
            "failed_at": failed_at,
        }
        _put_new(connection, schema.Failure, failure)
        return True


def record_scores(engine: Engine, scores: Collection[facts.Score]) -> None:
    """What scorers saw in all pictures of merges: a later look by the same scorer takes the place of the earlier one.

    What it saw before in pictures that are not among these goes, since their floor and ceiling were others.
    """
    with engine.begin() as connection:
        _put_scores(connection, scores)


def _put_scores(connection: Connection, scores: Collection[facts.Score]) -> None:
    rows = {score.score_id: _score_row(score) for score in scores}
    table, merge = schema.Score, schema.Merge
    # Two that score one merge take turns: neither would see the other's summary, and no ranking would have both.
    scored = select(merge.merge_id, merge.subject, merge.style, merge.method).order_by(merge.merge_id)
    scored = scored.where(merge.merge_id.in_({score.merge_id for score in scores})).with_for_update()
    merges = connection.execute(scored).mappings().all()
    _put(connection, table, rows, ("value", "floor", "ceiling", "position", "reason", "scored_at"))
    seen: dict[str, list[facts.Score]] = defaultdict(list)
    for score in scores:
        seen[score.merge_id].append(score)
    for merge_id, of_merge in sorted(seen.items()):
        by_these = table.scorer_id.in_({score.scorer_id for score in of_merge})
        earlier = delete(table).where(table.merge_id == merge_id, by_these)
        connection.execute(earlier.where(table.score_id.not_in([score.score_id for score in of_merge])))
    _summarise(connection, scores)
    for found in merges:
        _rank(connection, found)


def _summarise(connection: Connection, scores: Collection[facts.Score]) -> None:
    """What these scores come to, in place of what the same scorers' earlier ones of the same merges did."""
    by_scorer: dict[tuple[str, str], dict[str, facts.Score]] = defaultdict(dict)
    for score in scores:
        by_scorer[score.merge_id, score.scorer_id][score.score_id] = score
    rows = {
        (merge_id, scorer_id): {"merge_id": merge_id, **vars(facts.ScoreSummary.of(seen.values()))}
        for (merge_id, scorer_id), seen in by_scorer.items()
    }
    changed = ("pictures", "value", "floor", "ceiling", "position", "reason", "scored_at")
    _put(connection, schema.Summary, rows, changed)


def _rank(connection: Connection, merge: Mapping[Any, Any]) -> None:
    """The merge's place in the ranking of each scorer of subjects with each scorer of styles."""
    table, summary = schema.Ranking, schema.Summary
    placed = select(summary.scorer_id, summary.position).where(summary.merge_id == merge["merge_id"])
    positions: dict[str, dict[str, float]] = defaultdict(dict)
    for scorer_id, position in connection.execute(placed):
        if position is not None:
            positions[facts.metric_of(scorer_id)][scorer_id] = position
    rows = {
        (subject, style): {
            **merge,
            "subject_scorer": subject,
            "style_scorer": style,
            "subject_position": subject_position,
            "style_position": style_position,
            "score_01": facts.harmonic_01(subject_position, style_position),
        }
        for subject, subject_position in positions[facts.SUBJECT_METRIC].items()
        for style, style_position in positions[facts.STYLE_METRIC].items()
    }
    connection.execute(delete(table).where(table.merge_id == merge["merge_id"]))
    _put(connection, table, rows)


def record_request(engine: Engine, subject: str, style: str, requested_at: datetime) -> None:
    """Somebody asks for a pair, maybe again: its blocked merges may be tried three times more."""
    merge = schema.Merge
    request_id = facts.key(subject, style)
    row = {
        "request_id": request_id,
        "subject": subject,
        "style": style,
        "requested_at": requested_at,
        "closed_at": None,
    }
    with engine.begin() as connection:
        _put(connection, schema.Request, {request_id: row}, ("requested_at", "closed_at"))
        unfinished = or_(merge.status == "blocked", merge.status == "failed")
        pair = update(merge).where(merge.subject == subject, merge.style == style, unfinished)
        connection.execute(pair.values(status="failed", attempts=0))


def record_request_closed(engine: Engine, subject: str, style: str, closed_at: datetime) -> None:
    """A request was answered; one that came in after that moment stays open."""
    request = schema.Request
    asked = update(request).where(request.subject == subject, request.style == style)
    with engine.begin() as connection:
        connection.execute(asked.where(request.requested_at <= closed_at).values(closed_at=closed_at))


def record_publication(engine: Engine, publication: facts.Publication) -> None:
    """How far a publication has come; word of an earlier step that arrives late changes nothing."""
    table = schema.Publication
    row = {"publication_id": publication.publication_id, **vars(publication)}
    order = facts.PUBLICATION_ORDER
    earlier = order[: order.index(publication.status)]
    with engine.begin() as connection:
        if not _put_new(connection, table, row):
            known = update(table).where(table.publication_id == publication.publication_id)
            connection.execute(known.where(table.status.in_(earlier)).values(row))


def record_history_rewritten(engine: Engine, repository: str, commit: str) -> None:
    """A collection on the Hub has forgotten its older commits: all that is published in it is in this one."""
    table = schema.Publication
    there = update(table).where(table.repository == repository, table.status.in_(("committed", "verified")))
    with engine.begin() as connection:
        connection.execute(there.values(commit=commit))


def record_tombstones(engine: Engine, tombstones: Collection[facts.Tombstone], adapters: Collection[str]) -> None:
    """These sources are taken down for good, and with them every merge and every request of these adapters."""
    rows = {one.tombstone_id: {"tombstone_id": one.tombstone_id, **vars(one)} for one in tombstones}
    merge, request = schema.Merge, schema.Request
    with engine.begin() as connection:
        _put(connection, schema.Tombstone, rows)
        for sha256 in sorted(adapters):
            mine = or_(merge.subject == sha256, merge.style == sha256)
            merges = select(merge.merge_id).where(mine)
            adapter = update(schema.Adapter).where(schema.Adapter.sha256 == sha256)
            connection.execute(adapter.values(status="restricted"))
            connection.execute(update(merge).where(mine).values(status="skipped", **vars(facts.TAKEN_DOWN)))
            for table in (schema.Score, schema.Summary, schema.Ranking):
                connection.execute(delete(table).where(table.merge_id.in_(merges)))
            connection.execute(delete(request).where(or_(request.subject == sha256, request.style == sha256)))


def record_copies(engine: Engine, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """These rows are those of an earlier catalogue, none of which is in this one; gives back how many they are."""
    if rows:
        with engine.begin() as connection:
            connection.execute(table.insert(), [*rows])
    return len(rows)

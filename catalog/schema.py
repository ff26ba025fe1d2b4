"""The tables of a catalogue, and the one way to open it.

One set of models for SQLite and Postgres: string keys made by us, doubles, JSON, words instead of native enums,
times in UTC, nothing that cascades.
"""

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Enum,
    ExceptionContext,
    ForeignKey,
    Index,
    String,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

from catalog.columns import FiniteDouble, StorableJson, StorableText, UtcDateTime
from catalog.errors import CatalogueError
from catalog.facts import AdapterStatus, MergeStatus, PublicationStatus, Role, TombstoneKind
from catalog.migrations import check_revision, upgrade

Catalogue = Engine
"""An open catalogue."""

_BUSY_SECONDS = 30
_DAMAGED = ("file is not a database", "database disk image is malformed")
_FULL = ("database or disk is full", "no space left on device")
_BUSY = ("database is locked",)


def _words(literal: Any) -> Enum:
    return Enum(*get_args(literal), native_enum=False, validate_strings=True, length=16)


class Base(DeclarativeBase):
    """What all tables share: which column type holds which Python type."""

    type_annotation_map = {  # noqa: RUF012 # SQLAlchemy reads it as it is
        str: StorableText,
        float: FiniteDouble,
        datetime: UtcDateTime,
        dict[str, Any]: StorableJson,
        Role: _words(Role),
        AdapterStatus: _words(AdapterStatus),
        MergeStatus: _words(MergeStatus),
        PublicationStatus: _words(PublicationStatus),
        TombstoneKind: _words(TombstoneKind),
    }


def _id() -> Mapped[str]:
    return mapped_column(String(64), primary_key=True)


def _adapter() -> Mapped[str]:
    return mapped_column(String(64), ForeignKey("adapters.sha256"))


def _night() -> Mapped[str]:
    return mapped_column(String(64), ForeignKey("nights.night_id"))


def _merge() -> Mapped[str]:
    return mapped_column(String(64), ForeignKey("merges.merge_id"))


class Night(Base):
    """One run of the whole pipeline."""

    __tablename__ = "nights"
    night_id: Mapped[str] = _id()
    settings: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    summary: Mapped[dict[str, Any] | None]


class Batch(Base):
    """Merges that one process was given together, and how it ended."""

    __tablename__ = "batches"
    __table_args__ = (Index("batches_by_night", "night_id"),)
    batch_id: Mapped[str] = _id()
    night_id: Mapped[str] = _night()
    number: Mapped[int]
    merges: Mapped[int]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime]
    ended: Mapped[str]


class Adapter(Base):
    """A LoRA file, known by its content."""

    __tablename__ = "adapters"
    sha256: Mapped[str] = _id()
    role: Mapped[Role]
    status: Mapped[AdapterStatus]
    licence: Mapped[str | None]
    facts: Mapped[dict[str, Any]]
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class Alias(Base):
    """A place where an adapter was seen."""

    __tablename__ = "aliases"
    __table_args__ = (Index("aliases_by_adapter", "sha256"),)
    alias_id: Mapped[str] = _id()
    repository: Mapped[str]
    revision: Mapped[str]
    file_name: Mapped[str]
    sha256: Mapped[str] = _adapter()
    seen_at: Mapped[datetime]


class Header(Base):
    """What a file of the Hub says about itself at a commit: either facts, or why it is refused. It is read once."""

    __tablename__ = "headers"
    alias_id: Mapped[str] = _id()
    repository: Mapped[str]
    revision: Mapped[str]
    file_name: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    """Of an adapter, if the file is one."""
    facts: Mapped[dict[str, Any] | None]
    code: Mapped[str | None]
    fact: Mapped[str | None]
    next_step: Mapped[str | None]
    reader: Mapped[int]
    read_at: Mapped[datetime]


class Refusal(Base):
    """A file that a night would not take, and why."""

    __tablename__ = "refusals"
    __table_args__ = (Index("refusals_by_night", "night_id"),)
    refusal_id: Mapped[str] = _id()
    night_id: Mapped[str] = _night()
    repository: Mapped[str]
    revision: Mapped[str]
    file_name: Mapped[str]
    sha256: Mapped[str | None] = mapped_column(String(64), ForeignKey("adapters.sha256"))
    code: Mapped[str]
    fact: Mapped[str]
    next_step: Mapped[str]
    refused_at: Mapped[datetime]


class Merge(Base):
    """A recipe and what became of it; code, fact and next step are those of the last failure or skip."""

    __tablename__ = "merges"
    __table_args__ = (
        Index("merges_by_subject", "subject", "style", "merge_id", "status"),  # a plan reads no more than this
        Index("merges_by_style", "style", "subject"),
        Index("merges_by_status", "status"),
        Index("merges_by_finish", "finished_at"),
    )
    merge_id: Mapped[str] = _id()
    subject: Mapped[str] = _adapter()
    style: Mapped[str] = _adapter()
    method: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    status: Mapped[MergeStatus]
    attempts: Mapped[int]
    """Failed tries since the pair was last asked for; none of a finished merge."""
    night_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("nights.night_id"))
    losses: Mapped[dict[str, Any] | None]
    movement: Mapped[float | None]
    seconds: Mapped[float | None]
    """Of merging alone."""
    pair_seconds: Mapped[float | None]
    """With pictures and scores, in the night that finished it; unknown of merges from before this was measured."""
    finished_at: Mapped[datetime | None]
    code: Mapped[str | None]
    fact: Mapped[str | None]
    next_step: Mapped[str | None]


class Failure(Base):
    """A try of a merge that failed, one a night: kept when the merge succeeds later."""

    __tablename__ = "failures"
    __table_args__ = (Index("failures_by_night", "night_id"), Index("failures_by_merge", "merge_id"))
    failure_id: Mapped[str] = _id()
    merge_id: Mapped[str] = _merge()
    night_id: Mapped[str] = _night()
    code: Mapped[str]
    fact: Mapped[str]
    next_step: Mapped[str]
    failed_at: Mapped[datetime]


class Score(Base):
    """One picture seen by one scorer. Either it has a position between floor and ceiling, or the reason why not."""

    __tablename__ = "scores"
    __table_args__ = (Index("scores_by_merge", "merge_id", "scorer_id"),)
    score_id: Mapped[str] = _id()
    merge_id: Mapped[str] = _merge()
    scorer_id: Mapped[str]
    prompt: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float | None]
    floor: Mapped[float | None]
    ceiling: Mapped[float | None]
    position: Mapped[float | None]
    reason: Mapped[str | None]
    scored_at: Mapped[datetime]


class Summary(Base):
    """All pictures of a merge seen by one scorer, as means: no question has to add up scores."""

    __tablename__ = "summaries"
    __table_args__ = ({"sqlite_with_rowid": False},)
    merge_id: Mapped[str] = mapped_column(String(64), ForeignKey("merges.merge_id"), primary_key=True)
    scorer_id: Mapped[str] = mapped_column(primary_key=True)
    pictures: Mapped[int]
    value: Mapped[float | None]
    floor: Mapped[float | None]
    ceiling: Mapped[float | None]
    position: Mapped[float | None]
    reason: Mapped[str | None]
    scored_at: Mapped[datetime]


class Ranking(Base):
    """A merge that one scorer of subjects and one of styles have placed, with the harmonic mean of both positions.

    It repeats what never changes of its merge, so that the best of a million are filtered without looking these up.
    """

    __tablename__ = "rankings"
    __table_args__ = (
        Index("rankings_by_score", "subject_scorer", "style_scorer", "score_01"),
        Index("rankings_by_subject", "subject", "subject_scorer", "style_scorer"),
        Index("rankings_by_style", "style", "subject_scorer", "style_scorer"),
        {"sqlite_with_rowid": False},
    )
    merge_id: Mapped[str] = mapped_column(String(64), ForeignKey("merges.merge_id"), primary_key=True)
    subject_scorer: Mapped[str] = mapped_column(primary_key=True)
    style_scorer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = _adapter()
    style: Mapped[str] = _adapter()
    method: Mapped[str]
    subject_position: Mapped[float]
    style_position: Mapped[float]
    score_01: Mapped[float]


class Request(Base):
    """A pair that somebody asked for; open until closed."""

    __tablename__ = "requests"
    request_id: Mapped[str] = _id()
    subject: Mapped[str] = _adapter()
    style: Mapped[str] = _adapter()
    requested_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Publication(Base):
    """A merge on its way to one repository of the Hub."""

    __tablename__ = "publications"
    publication_id: Mapped[str] = _id()
    merge_id: Mapped[str] = _merge()
    repository: Mapped[str]
    status: Mapped[PublicationStatus]
    commit: Mapped[str | None]
    changed_at: Mapped[datetime]
    folder: Mapped[str] = mapped_column(server_default="")


class Tombstone(Base):
    """A source that was taken down for good."""

    __tablename__ = "tombstones"
    tombstone_id: Mapped[str] = _id()
    kind: Mapped[TombstoneKind]
    name: Mapped[str]
    why: Mapped[str]
    buried_at: Mapped[datetime]


def _prepare_sqlite(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
    connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    while not _writes_ahead(connection):
        # Another process makes the same change at this moment, for which SQLite does not wait. It does for this:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _writes_ahead(connection: DBAPIConnection) -> bool:
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _begin_sqlite(connection: Connection) -> None:
    """Writers wait for each other at the start, where waiting always ends well; readers wait for nobody."""
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _in_plain_words(context: ExceptionContext) -> CatalogueError | None:
    """A database's own words for damage, a full disk or an endless wait, with what to do next."""
    said = str(context.original_exception)
    where = context.engine.url.render_as_string() if context.engine else "the catalogue"
    lowered = said.lower()
    if any(words in lowered for words in _DAMAGED):
        return CatalogueError("CATALOGUE_DAMAGED", f"{where} cannot be read ({said}). Run: ziplora rebuild CONFIG")
    if any(words in lowered for words in _FULL):
        return CatalogueError("DISK_FULL", f"No room to write to {where} ({said}). Free some space and run again.")
    if any(words in lowered for words in _BUSY):
        return CatalogueError(
            "CATALOGUE_BUSY", f"Another process kept {where} locked for {_BUSY_SECONDS} s. End it and run again."
        )
    if context.is_disconnect or context.connection is None:
        return CatalogueError(
            "CATALOGUE_UNREACHABLE", f"Cannot open {where} ({said.strip()}). Is the URL right and the server up?"
        )
    return None


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise NoSuchModuleError
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")  # what is installed; psycopg2 is meant otherwise
        options = {"connect_args": {"timeout": _BUSY_SECONDS}} if parsed.get_backend_name() == "sqlite" else {}
        return create_engine(parsed, **options)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise CatalogueError(
            "CATALOGUE_URL",
            f"{url.split('@')[-1]!r} does not open ({error}). Use sqlite:///catalog.sqlite or postgresql://host/name, "
            "the latter with psycopg installed.",
        ) from error


def open_catalogue(url: str, *, migrate: bool = False) -> Engine:
    """The catalogue at a SQLite or Postgres URL, its schema made or brought up to date only when asked."""
    engine = _engine(url)
    event.listen(engine, "handle_error", _in_plain_words, retval=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        if migrate:
            upgrade(engine)
        elif engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
            raise CatalogueError("CATALOGUE_MISSING", f"There is no file {engine.url.database}: run a night first.")
        check_revision(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def reading(engine: Engine) -> Engine:
    """The same catalogue for questions: each transaction sees one moment, and holds up no writer."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine.execution_options(reads=True)

"""A DuckDB file with the whole catalogue at one moment, for people: anybody may open it at any time.

Times are in UTC. The questions of `questions.sql` are its views and macros:

    FROM best_styles_for('<sha256 of the subject>', ['<scorer id>', '<scorer id>']) LIMIT 20;
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Double,
    Engine,
    Integer,
    Table,
    Text,
    cast,
    func,
    select,
)

from catalog.errors import CatalogueError
from catalog.licence import merged_licences
from catalog.schema import Base, reading

_DUCKDB_TYPES = (
    (JSON, "JSON"),
    (DateTime, "TIMESTAMP"),
    (Double, "DOUBLE"),
    (BigInteger, "BIGINT"),
    (Integer, "INTEGER"),
)
_ROWS_AT_A_TIME = 50_000
_BLOCK_BYTES = 65_536
"""Read to find one row, for each of its long columns: a lookup by id takes two thirds of what it does with 256 KiB."""
_ROW_GROUP = 20_480
"""Rows of a Parquet file that a reader far away fetches at once, to find few."""
_EXPORT_SETTINGS = (
    "SET memory_limit = '300MB'",  # what it has read would stay in memory
    "SET threads = 1",  # each would hold a row group of its own; one keeps the order of the rows
    "SET preserve_insertion_order = false",  # or a row group could not end by its bytes
)
_PARQUET = f"FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP}, ROW_GROUP_SIZE_BYTES '32MB'"
_QUESTIONS = (files("catalog") / "questions.sql").read_text(encoding="utf-8")


def _duckdb_type(column: Column[Any]) -> str:
    plain = getattr(column.type, "impl_instance", column.type)
    return next((word for cls, word in _DUCKDB_TYPES if isinstance(plain, cls)), "VARCHAR")


def _as_stored(column: Column[Any], dialect: str) -> ColumnElement[Any]:
    """The column in a form that DuckDB reads by itself, so that Python looks into no value."""
    kind = _duckdb_type(column)
    if kind == "TIMESTAMP" and dialect == "postgresql":
        return cast(func.timezone("UTC", column), Text)
    return cast(column, Text) if kind in ("TIMESTAMP", "JSON") else column


def _fill(snapshot: duckdb.DuckDBPyConnection, connection: Connection, table: Table) -> None:
    """One table by the order of its keys, so that a key is found at once; what belongs to a merge lies together.

    Rows come as arrays, many at a time: the fastest road that needs no extension of DuckDB.
    """
    columns = ", ".join(f"{column.name} {_duckdb_type(column)}" for column in table.columns)
    snapshot.execute(f"CREATE TABLE unsorted.{table.name} ({columns})")
    stored = select(*(_as_stored(column, connection.dialect.name) for column in table.columns))
    rows = connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(stored)
    for part in rows.partitions():
        values = zip(table.columns, zip(*part, strict=True), strict=True)
        snapshot.register("part", {column.name: _array(column, found) for column, found in values})
        snapshot.execute(f"INSERT INTO unsorted.{table.name} FROM part")
    keys = [column.name for column in table.primary_key]
    order = ", ".join(["merge_id", *keys] if "merge_id" in table.columns else keys)
    snapshot.execute(f"CREATE TABLE {table.name} AS FROM unsorted.{table.name} ORDER BY {order}")


def _array(column: Column[Any], values: tuple[Any, ...]) -> NDArray[Any]:
    if _duckdb_type(column) == "DOUBLE":
        return np.ma.masked_invalid(np.array(values, dtype=np.float64))
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _add_licences(snapshot: duckdb.DuckDBPyConnection) -> None:
    """A table of what a merge carries, by the licences of its adapters: no SQL knows which can be kept together."""
    snapshot.execute("CREATE TABLE merged_licences (subject_licence VARCHAR, style_licence VARCHAR, licence VARCHAR)")
    known = [licence for (licence,) in snapshot.execute("SELECT DISTINCT licence FROM adapters").fetchall()]
    for pair, licence in merged_licences(known).items():
        snapshot.execute("INSERT INTO merged_licences VALUES (?, ?, ?)", [*pair, licence])


@contextmanager
def one_builder(path: Path) -> Iterator[Path]:
    """An empty folder beside the path that one process has at a time: an older snapshot never replaces a newer one."""
    folder = path.with_name(f".{path.name}.building")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)  # what a killed builder left
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def write_snapshot(engine: Engine, path: Path) -> None:
    """Build the DuckDB file of this moment and rename it into place; who has the old one open keeps it."""
    try:
        _write(engine, path)
    except duckdb.Error as error:
        code = "DISK_FULL" if "no space left" in str(error).lower() else "SNAPSHOT_UNWRITTEN"
        sentence = f"{path} cannot be written ({_said(error)}). Is there room, and may it be written?"
        raise CatalogueError(code, sentence) from error


def _write(engine: Engine, path: Path) -> None:
    with one_builder(path) as folder:
        snapshot = duckdb.connect(folder / "new.duckdb", config={"default_block_size": _BLOCK_BYTES})
        with snapshot, reading(engine).connect() as connection:
            snapshot.execute("SET pandas_analyze_sample = 0")  # it would guess a type from the first rows
            snapshot.execute("ATTACH ? AS unsorted", [str(folder / "unsorted.duckdb")])
            for table in Base.metadata.sorted_tables:
                _fill(snapshot, connection, table)
            snapshot.execute("DETACH unsorted")
            snapshot.execute("CREATE UNIQUE INDEX merges_by_id ON merges (merge_id)")
            _add_licences(snapshot)
            snapshot.execute(_QUESTIONS)
            snapshot.execute("CHECKPOINT")
        (folder / "new.duckdb").replace(path)


@contextmanager
def _opened(snapshot: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    if not snapshot.is_file():
        raise CatalogueError("SNAPSHOT_MISSING", f"There is no snapshot {snapshot}: run a night first.")
    try:
        opened = duckdb.connect(snapshot, read_only=True)
        opened.execute("FROM merged_licences LIMIT 0")
    except duckdb.Error as error:
        sentence = f"{snapshot} is no snapshot of this ziplora ({_said(error)}). Write it anew: ziplora snapshot"
        raise CatalogueError("SNAPSHOT_DAMAGED", sentence) from error
    with opened as connection:
        yield connection


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A folder inside the folder that is gone afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        building = tempfile.TemporaryDirectory(prefix=".", dir=folder)
    except OSError as error:
        raise CatalogueError("NOT_WRITABLE", f"{folder} cannot be made ({error.strerror}). Name another.") from error
    with building as name:
        yield Path(name)


def _said(error: duckdb.Error) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def export_parquet(snapshot: Path, folder: Path) -> list[Path]:
    """One Parquet file per table of a snapshot, renamed into place when all are whole."""
    try:
        with _opened(snapshot) as connection, _building(folder) as building:
            for setting in _EXPORT_SETTINGS:
                connection.execute(setting)
            new = [building / f"{table.name}.parquet" for table in Base.metadata.sorted_tables]
            for file in new:
                connection.execute(f"COPY {file.stem} TO ? ({_PARQUET})", [str(file)])
            return [file.replace(folder / file.name) for file in new]
    except duckdb.Error as error:
        sentence = f"{snapshot} cannot be written to {folder} ({_said(error)}). Is there room, and is it a snapshot?"
        raise CatalogueError("PARQUET", sentence) from error


def ask(snapshot: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The answer of a snapshot to a question in SQL: names of the columns, and rows."""
    try:
        with _opened(snapshot) as connection:
            answer = connection.execute(sql)
            return [column[0] for column in answer.description or ()], answer.fetchall()
    except duckdb.Error as error:
        raise CatalogueError("SQL", f"{_said(error)}. See: ziplora query 'SHOW TABLES'") from error

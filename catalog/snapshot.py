"""A DuckDB file with the whole catalogue at one moment, for people: anybody may open it at any time.

Times are in UTC. The same questions as in `catalog.queries` are views and macros:

    FROM best_styles_for('<sha256 of the subject>', ['<scorer id>', '<scorer id>']) LIMIT 20;
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import JSON, BigInteger, Connection, DateTime, Double, Engine, Integer, Table, select

from catalog.errors import CatalogueError
from catalog.schema import Base, reading

_DUCKDB_TYPES = (
    (JSON, "JSON"),
    (DateTime, "TIMESTAMP"),
    (Double, "DOUBLE"),
    (BigInteger, "BIGINT"),
    (Integer, "INTEGER"),
)
_ROWS_AT_A_TIME = 10_000

_BEST = """
CREATE MACRO {name}({parameters}) AS TABLE
    SELECT * FROM ranking(scorers) {chosen}
    QUALIFY row_number() OVER (PARTITION BY {per} ORDER BY score_01 DESC, merge_id) = 1
    ORDER BY score_01 DESC, merge_id;
"""

_QUESTIONS = (
    """
CREATE VIEW finished_merges AS
    SELECT merge_id, subject, style, method, movement, seconds, night_id, finished_at FROM merges WHERE status = 'done';

CREATE VIEW usable_adapters AS
    SELECT adapters.*, list(repository ORDER BY seen_at DESC, alias_id) FILTER (alias_id IS NOT NULL) AS repositories
    FROM adapters LEFT JOIN aliases USING (sha256) WHERE status = 'usable' GROUP BY ALL;

CREATE VIEW open_requests AS
    SELECT subject, style, requested_at FROM requests WHERE closed_at IS NULL ORDER BY requested_at, request_id;

CREATE MACRO failures_of(night) AS TABLE
    SELECT 'refused' AS word, repository || '@' || revision || '/' || file_name AS item, code, fact, next_step,
        refused_at AS happened_at FROM refusals WHERE night_id = night
    UNION ALL
    SELECT 'failed', merge_id, code, fact, next_step, failed_at FROM failures WHERE night_id = night
    ORDER BY happened_at, item;

CREATE MACRO ranking(scorers) AS TABLE
    WITH positions AS (
        SELECT merge_id, subject, style, method, greatest(0, least(1, avg(position))) AS position
        FROM merges JOIN scores USING (merge_id)
        WHERE status = 'done' AND list_contains(scorers, scorer_id)
        GROUP BY merge_id, subject, style, method, scorer_id HAVING count(*) = count(position)
    ), ranked AS (
        SELECT merge_id, subject, style, method, count(*) AS seen_by,
            CASE WHEN min(position) = 0 THEN 0 ELSE count(*) / sum(1 / nullif(position, 0)) END AS score_01
        FROM positions GROUP BY merge_id, subject, style, method
    )
    SELECT * EXCLUDE seen_by FROM ranked WHERE seen_by = len(list_distinct(scorers));
"""
    + _BEST.format(name="best_styles_for", parameters="chosen, scorers", chosen="WHERE subject = chosen", per="style")
    + _BEST.format(name="best_subjects_for", parameters="chosen, scorers", chosen="WHERE style = chosen", per="subject")
    + _BEST.format(name="best_method_per_pair", parameters="scorers", chosen="", per="subject, style")
)


def _duckdb_type(table: Table, name: str) -> str:
    kind = table.c[name].type
    plain = getattr(kind, "impl_instance", kind)
    return next((word for cls, word in _DUCKDB_TYPES if isinstance(plain, cls)), "VARCHAR")


def _plain(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).replace(tzinfo=None).isoformat()


def _fill(snapshot: duckdb.DuckDBPyConnection, connection: Connection, table: Table, folder: Path) -> None:
    """One table, by way of a file of JSON lines: the fastest road that needs no DuckDB extension."""
    lines = folder / "rows.ndjson"
    names = [column.name for column in table.columns]
    rows = connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(select(table))
    with lines.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(names, row, strict=True)), default=_plain) + "\n")
    columns = ", ".join(f"{name}: '{_duckdb_type(table, name)}'" for name in names)
    (primary,) = table.primary_key
    snapshot.execute(
        f"CREATE TABLE {table.name} AS SELECT * FROM "
        f"read_json(?, format = 'newline_delimited', columns = {{{columns}}}) ORDER BY {primary.name}",
        [str(lines)],
    )


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
    with one_builder(path) as folder:
        with duckdb.connect(folder / "new.duckdb") as snapshot, reading(engine).connect() as connection:
            for table in Base.metadata.sorted_tables:
                _fill(snapshot, connection, table, folder)
            snapshot.execute(_QUESTIONS)
            snapshot.execute("CHECKPOINT")
        (folder / "new.duckdb").replace(path)


@contextmanager
def _opened(snapshot: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    if not snapshot.is_file():
        raise CatalogueError("SNAPSHOT_MISSING", f"There is no snapshot {snapshot}: run a night first.")
    with duckdb.connect(snapshot, read_only=True) as connection:
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
            new = [building / f"{table.name}.parquet" for table in Base.metadata.sorted_tables]
            for file in new:
                connection.execute(f"COPY {file.stem} TO ? (FORMAT parquet)", [str(file)])
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

"""A catalogue opens with the right schema, or says in one sentence what to run."""

import shlex
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, make_url, select, text
from sqlalchemy.exc import StatementError

from catalog import record
from catalog.errors import CatalogueError
from catalog.migrations import VERSION_TABLE, check_revision, versions
from catalog.schema import Base, Night, open_catalogue, reading

from .samples import DOG, NIGHT, NOON, adapter


def _run_sql(url: str, *statements: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_the_migrations_make_what_the_models_describe(catalogue: Engine) -> None:
    with catalogue.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_every_connection_to_sqlite_waits_and_is_careful(tmp_path: Path) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    with engine.connect() as first, reading(engine).connect() as second:
        first.rollback()
        for connection in (first, second):
            pragmas = ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
            assert values == ["wal", 30_000, 1, 1]
            connection.rollback()
    engine.dispose()


def test_a_database_without_tables_waits_for_its_first_night(url: str) -> None:
    _run_sql(url, "CREATE TABLE other (x TEXT)", "DROP TABLE other")
    with pytest.raises(CatalogueError, match=r"CATALOGUE_MISSING: .* has no tables yet: run a night first"):
        open_catalogue(url)
    open_catalogue(url, migrate=True).dispose()
    open_catalogue(url).dispose()


def test_a_database_of_something_else_names_the_command_that_makes_our_tables(url: str) -> None:
    _run_sql(url, "CREATE TABLE other (x TEXT)")
    with pytest.raises(CatalogueError, match=r"CATALOGUE_OLDER: .* has schema none") as caught:
        open_catalogue(url)
    arguments = shlex.split(str(caught.value).partition("Run: python ")[2])
    made = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert made.stdout.endswith("is up to date.\n"), made.stderr
    open_catalogue(url).dispose()


def test_a_catalogue_from_the_future_is_left_alone(url: str) -> None:
    open_catalogue(url, migrate=True).dispose()
    _run_sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for migrate in (False, True):
        with pytest.raises(CatalogueError, match=r"CATALOGUE_NEWER: .* pip install --upgrade ziplora"):
            open_catalogue(url, migrate=migrate)
    _run_sql(url, "SELECT night_id FROM nights")


def test_no_message_shows_a_password(catalogue: Engine) -> None:
    with catalogue.begin() as connection:
        connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
    catalogue.url = catalogue.url.set(password="hunter2", username="ziplora")
    with pytest.raises(CatalogueError, match="CATALOGUE_OLDER") as caught:
        check_revision(catalogue)
    assert "hunter2" not in str(caught.value)


def test_eight_may_upgrade_at_once(url: str) -> None:
    together = Barrier(8)

    def upgrade(_: int) -> None:
        together.wait()
        open_catalogue(url, migrate=True).dispose()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upgrade, range(8)))
    engine = open_catalogue(url)
    newest = max(path.name[:4] for path in Path(versions.__file__).parent.glob("0*.py"))
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all() == [newest]
    engine.dispose()


def test_an_upgrade_waits_for_a_writer_who_came_before_the_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, ThreadPoolExecutor(1) as pool:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("CREATE TABLE notes (words)")
        upgrade = pool.submit(open_catalogue, f"sqlite:///{path}", migrate=True)
        with pytest.raises(TimeoutError):
            upgrade.result(timeout=0.5)
        writer.execute("COMMIT")
        engine = upgrade.result(timeout=20)
    assert {"notes", "merges"} <= set(inspect(engine).get_table_names())
    engine.dispose()


def test_an_upgrade_that_dies_half_way_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade_and_die(config: Config, revision: str) -> None:
        whole_upgrade(config, revision)
        raise KeyboardInterrupt

    whole_upgrade = command.upgrade
    with monkeypatch.context() as broken:
        broken.setattr(command, "upgrade", upgrade_and_die)
        with pytest.raises(KeyboardInterrupt):
            open_catalogue(url, migrate=True)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    open_catalogue(url, migrate=True).dispose()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:///nowhere/catalog.sqlite", "CATALOGUE_MISSING"),
        ("postgresql://localhost:1/catalogue", "CATALOGUE_UNREACHABLE"),
        ("mysql://localhost/catalogue", "CATALOGUE_URL"),
        ("catalog.sqlite", "CATALOGUE_URL"),
        ("duckdb:///catalog.duckdb", "CATALOGUE_URL"),
        ("postgresql+nodriver://me:hunter2@localhost/catalogue", "CATALOGUE_URL"),
    ],
)
def test_what_does_not_open_says_so(url: str, code: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        open_catalogue(url)
    assert caught.value.code == code
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named_when_a_catalogue_is_made() -> None:
    with pytest.raises(CatalogueError, match=r"CATALOGUE_UNREACHABLE.*nowhere"):
        open_catalogue("sqlite:///nowhere/catalog.sqlite", migrate=True)


def test_a_damaged_file_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(CatalogueError, match="CATALOGUE_DAMAGED"):
        open_catalogue(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"no database")


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    record.record_adapters(engine, [adapter(DOG, "subject")])
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.rollback()
    with pytest.raises(CatalogueError, match="DISK_FULL"):
        record.record_night_started(engine, NIGHT, {"long": "x" * 1_000_000}, NOON)
    with engine.connect() as connection:
        assert connection.execute(select(Night.night_id)).all() == []
    engine.dispose()


def test_times_come_back_in_utc_and_never_without_a_zone(catalogue: Engine) -> None:
    there = datetime(2026, 11, 24, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    record.record_night_started(catalogue, NIGHT, {}, there)
    with catalogue.connect() as connection:
        (seen,) = connection.scalars(select(Night.started_at))
    assert (seen, seen.tzinfo) == (there, UTC)
    with pytest.raises(StatementError, match="no time zone"):
        record.record_night_started(catalogue, "other", {}, there.replace(tzinfo=None))


def test_a_url_with_a_percent_sign_opens(tmp_path: Path) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / '100% mine.sqlite'}", migrate=True)
    assert make_url(str(engine.url)).database == str(tmp_path / "100% mine.sqlite")
    engine.dispose()

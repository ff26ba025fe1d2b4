"""An empty catalogue that takes the place of another one, which is put aside and never deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, func, make_url, select, text

from catalog.errors import CatalogueError
from catalog.migrations import VERSION_TABLE
from catalog.schema import Base, open_catalogue
from catalog.snapshot import one_builder

_BUILT_IN = "ziplora_rebuilding"
"""A Postgres schema, until its tables take the place of the others."""


@dataclass(frozen=True)
class Succession:
    """The new catalogue, and what it comes after."""

    new: Engine
    earlier: Engine | None
    """None where there is none, or nobody can read it."""
    aside: str | None
    """Where the earlier one will be: a file, or a Postgres schema."""


@contextmanager
def successor(url: str) -> Iterator[Succession]:
    """An empty catalogue in the place of the one at a URL, once all went well; no night may run meanwhile."""
    if make_url(url).get_backend_name() == "sqlite":
        with _new_file(Path(make_url(url).database or "")) as succession:
            yield succession
    else:
        with _new_tables(url) as succession:
            yield succession


def _stamp() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextmanager
def _new_file(path: Path) -> Iterator[Succession]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_builder(path) as folder:
        earlier = _readable(path)
        new = open_catalogue(f"sqlite:///{folder / path.name}", migrate=True)
        aside = _beside(path, f".aside-{_stamp()}") if path.exists() else None
        try:
            yield Succession(new, earlier, str(aside) if aside else None)
        finally:
            for engine in (new, earlier):
                if engine is not None:
                    engine.dispose()
        if earlier is not None and _beside(path, "-wal").exists():  # it goes with the last one who has the file open
            sentence = f"Another process, maybe a night, has {path} open. End it and run again."
            raise CatalogueError("CATALOGUE_BUSY", sentence)
        if aside is not None:
            aside.hardlink_to(path)
            for ending in ("-wal", "-shm"):  # of a damaged file; the new one would read them as its own
                if _beside(path, ending).exists():
                    _beside(path, ending).replace(_beside(aside, ending))
        (folder / path.name).replace(path)


def _readable(path: Path) -> Engine | None:
    """The catalogue in a file, unless there is none or it is damaged."""
    try:
        return open_catalogue(f"sqlite:///{path}", migrate=True) if path.exists() else None
    except CatalogueError as error:
        if error.code != "CATALOGUE_DAMAGED":
            raise
        return None


@contextmanager
def _new_tables(url: str) -> Iterator[Succession]:
    earlier = open_catalogue(url, migrate=True)
    with earlier.begin() as connection:
        connection.execute(text(f"DROP SCHEMA IF EXISTS {_BUILT_IN} CASCADE"))  # what a killed one left
        connection.execute(text(f"CREATE SCHEMA {_BUILT_IN}"))
    there = make_url(url).update_query_dict({"options": f"-csearch_path={_BUILT_IN}"})
    new = open_catalogue(there.render_as_string(hide_password=False), migrate=True)
    aside = f"ziplora_aside_{_stamp().lower()}"
    try:
        yield Succession(new, earlier, aside)
        new.dispose()
        _change_places(earlier, aside)
    finally:
        new.dispose()
        earlier.dispose()


def _change_places(engine: Engine, aside: str) -> None:
    """Move all tables in one transaction; whatever else lies in their schema stays."""
    with engine.begin() as connection:
        home = connection.scalar(select(func.current_schema()))
        connection.execute(text(f"CREATE SCHEMA {aside}"))
        for table in (*(table.name for table in Base.metadata.sorted_tables), VERSION_TABLE):
            connection.execute(text(f'ALTER TABLE "{home}".{table} SET SCHEMA {aside}'))
            connection.execute(text(f'ALTER TABLE {_BUILT_IN}.{table} SET SCHEMA "{home}"'))
        connection.execute(text(f"DROP SCHEMA {_BUILT_IN}"))

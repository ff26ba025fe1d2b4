"""The history of the schema, and how a catalogue is brought to its newest revision."""

import shlex
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, select

from catalog.errors import CatalogueError

VERSION_TABLE = "catalogue_version"
"""Not alembic's own name: Prefect keeps that one, maybe in the same Postgres database."""
_ADVISORY_LOCK = 0x5A49504C  # any number that nobody else locks


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def revision_of(connection: Connection) -> str | None:
    """The schema revision of a catalogue; None when it has no tables yet."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest revision, in one transaction that only one process has at a time.

    A process that waited, or was killed half way and started again, finds nothing or everything to do.
    """
    config = _config()
    with engine.begin() as connection:  # on SQLite this takes the write lock
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        if _is_newer(revision_of(connection)):
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_revision(engine: Engine) -> None:
    """Raise, with the exact command to run, unless the catalogue has the schema that this code knows."""
    with engine.connect() as connection:
        found = revision_of(connection)
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if found == newest:
        return
    where = engine.url.render_as_string()
    if _is_newer(found):
        raise CatalogueError(
            "CATALOGUE_NEWER",
            f"{where} has schema {found}, this ziplora knows up to {newest}. Run: pip install --upgrade ziplora",
        )
    if found is None and not inspect(engine).get_table_names():
        raise CatalogueError("CATALOGUE_MISSING", f"{where} has no tables yet: run a night first.")
    # Without the password, which libpq takes from PGPASSWORD: a command line is for everybody to see.
    url = engine.url._replace(password=None).render_as_string(hide_password=False)
    raise CatalogueError(
        "CATALOGUE_OLDER",
        f"{where} has schema {found or 'none'}, this ziplora needs {newest}. "
        f"Run: python -m catalog.migrations {shlex.quote(url)}",
    )


def _is_newer(revision: str | None) -> bool:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    return revision is not None and revision not in known

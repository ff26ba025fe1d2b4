"""Every test of a catalogue runs twice: on SQLite, and on a real Postgres that listens on a socket file only."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from catalog.schema import open_catalogue


def _run_unprivileged(command: list[str], folder: Path) -> None:
    """Postgres refuses to run as root, which a container often is."""
    owner = None
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        owner = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, owner)
    subprocess.run(command, user=owner, cwd=folder, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A database of a server of our own."""
    debian = [str(folder) for folder in Path("/usr/lib/postgresql").glob("*/bin")]
    path = os.pathsep.join([os.environ["PATH"], *debian])
    initdb, pg_ctl = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
    if initdb is None or pg_ctl is None:
        pytest.skip("Found no initdb and pg_ctl: install PostgreSQL to test with it.")
    with tempfile.TemporaryDirectory(prefix="ziplora-pg-") as name:
        folder = Path(name)
        data = str(folder / "data")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=40"
        start = [pg_ctl, "-D", data, "-w", "-t", "60", "-l", str(folder / "log"), "-o", options, "start"]
        _run_unprivileged([initdb, "-D", data, "-A", "trust", "-U", "ziplora", "-E", "UTF8", "--no-sync"], folder)
        _run_unprivileged(start, folder)
        try:
            yield URL.create("postgresql", username="ziplora", database="postgres", query={"host": name})
        finally:
            _run_unprivileged([pg_ctl, "-D", data, "-m", "immediate", "stop"], folder)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a catalogue can be made: nothing is there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    server: URL = request.getfixturevalue("postgres")
    engine = create_engine(server.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return server.render_as_string(hide_password=False)


@pytest.fixture
def catalogue(url: str) -> Iterator[Engine]:
    """An empty catalogue."""
    engine = open_catalogue(url, migrate=True)
    yield engine
    engine.dispose()

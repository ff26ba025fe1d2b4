"""The token of the Hub is nowhere but in the environment, whatever goes wrong in a night."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.catalog.hub_contents import TOKEN, HubServer
from tests.catalog.hub_server import serving

from .world import CLI, DIRECT, Place, settle

pytestmark = pytest.mark.slow


@pytest.fixture
def server(world: Path) -> Iterator[HubServer]:
    with serving() as running:
        running.add_folder("me/robot-lora", world / "adapters" / "robot-lora")
        yield running


def _place(folder: Path, world: Path) -> Place:
    return settle(
        folder / "night",
        world,
        sources=[
            {"repository": "me/robot-lora", "role": "subject"},
            {"repository": "me/nowhere", "role": "subject"},
            {"folder": "faults", "role": "subject"},
            {"folder": "adapters", "role": "style", "names": ["neon-lora", "bricks-lora"]},
        ],
        methods=DIRECT,
        publish={"enabled": True, "namespace": "me", "least_score": 0.0, "collection": "all", "dataset": "merged"},
    )


def _environment(folder: Path, server: HubServer) -> dict[str, str]:
    """All that a night writes outside its place comes to this folder."""
    places = {name: str(folder / name.lower()) for name in ("HOME", "TMPDIR", "HF_HOME", "PREFECT_HOME")}
    for place in places.values():
        Path(place).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    noisy = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"}
    return {**kept, **places, **noisy, "HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_DEBUG": "0"}


def _command_lines(session: int) -> Iterator[str]:
    """Of all processes that belong to a session now."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                yield (entry / "cmdline").read_text()
        except (OSError, IndexError):
            continue  # it has ended


def _contents(file: Path) -> str:
    """All that a file says, a database's packed rows too."""
    raw = file.read_bytes()
    said = raw.decode("utf-8", "replace")
    if raw.startswith(b"SQLite format 3"):
        with sqlite3.connect(file) as opened:
            said += "\n".join(opened.iterdump())
    if file.suffix == ".duckdb":
        with duckdb.connect(file, read_only=True) as snapshot:
            tables = [name for (name,) in snapshot.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            said += "".join(str(snapshot.execute(f"FROM {table}").fetchall()) for table in tables)
    return said


def _files_with(word: str, folder: Path) -> set[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {file.relative_to(folder).parts[-1] for file in files if word in _contents(file)}


def test_the_token_is_nowhere_after_a_night_with_faults(server: HubServer, world: Path, tmp_path: Path) -> None:
    there = _place(tmp_path, world)
    server.swallow_commit_answers = 1
    server.failing = {"/datasets/": 500}
    command = [*CLI, "run", str(there.config), "--json"]
    seen: set[str] = set()
    with (tmp_path / "out.txt").open("w") as out, (tmp_path / "err.txt").open("w") as err:
        night = subprocess.Popen(
            command, env=_environment(tmp_path, server), stdout=out, stderr=err, start_new_session=True
        )
        while night.poll() is None:
            seen.update(_command_lines(night.pid))
            try:
                night.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    report = json.loads((tmp_path / "out.txt").read_text())
    assert report["published"] >= 1, (tmp_path / "err.txt").read_text()[-3000:]
    assert report["unpublished"]["HUB_BUSY"] == 1
    assert report["refused"]["GONE"] == 1
    assert any("flows.cli" in line for line in seen)
    assert not any(TOKEN in line for line in seen)
    # That the search reaches all places: each of them speaks of the robot.
    assert {"catalog.sqlite", "catalog.duckdb", "prefect.db", "data.js"} <= _files_with("robot", tmp_path)
    assert _files_with(TOKEN, tmp_path) == set()

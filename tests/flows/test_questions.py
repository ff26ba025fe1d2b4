"""Every example of docs/questions.md runs, on the catalogue of a finished night."""

import csv
import io
import re
import shlex
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from flows.nightly import Report

from .conftest import Ziplora
from .world import Place

_PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text(encoding="utf-8")
_SQL = [sql.strip() for block in re.findall(r"```sql\n(.*?)```", _PAGE, re.DOTALL) for sql in block.split(";\n")]
_COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL) for line in block.splitlines()]
_MAY_FIND_NOTHING = ("publishable", "failed_merges", "subject_position")
"""In questions about an untrained world whose merges all succeeded."""


@pytest.fixture
def there(night: tuple[Place, Report], monkeypatch: pytest.MonkeyPatch, ziplora: Ziplora) -> Path:
    """The folder of the finished night, with its tables as Parquet."""
    monkeypatch.chdir(night[0].folder)
    monkeypatch.setenv("ZIPLORA_CATALOGUE", night[0].catalogue)
    assert ziplora("query", "--parquet", "tables").code == 0
    return night[0].folder


def test_every_sql_example_has_an_answer(there: Path, ziplora: Ziplora) -> None:
    asked = [sql for sql in _SQL if sql]
    assert len(asked) >= 10
    for sql in asked:
        said = ziplora("query", sql, "--json")
        assert said.code == 0, f"{sql}: {said.err}"
        assert said.document or any(word in sql for word in _MAY_FIND_NOTHING), sql


@pytest.mark.parametrize("line", _COMMANDS)
def test_every_command_runs(there: Path, ziplora: Ziplora, line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    said = ziplora(*arguments)
    assert (program, said.code) == ("ziplora", 0), said.err


def test_pick_names_pictures_that_are_there(there: Path, ziplora: Ziplora) -> None:
    picked = ziplora("pick", "--json").document
    assert picked
    assert all((there / one["pictures"]).is_file() for one in picked)


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "<script>", "a,b", "\u202egnp.exe"])
def test_no_name_is_a_formula(there: Path, ziplora: Ziplora, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(there / "catalog.sqlite")) as found, closing(sqlite3.connect(copy)) as written:
        found.backup(written)
        with written:
            written.execute("UPDATE aliases SET repository = ?", [name])
    head, *rows = csv.reader(io.StringIO(ziplora("pick", "--csv", "--catalogue", f"sqlite:///{copy}").out))
    shown = rows[0][head.index("subject")]
    assert not shown.startswith(("=", "+", "-", "@"))
    assert shown.lstrip("'") in name
    assert all(float(row[0]) >= 0 for row in rows)


def test_a_damaged_snapshot_says_what_writes_it_anew(there: Path, ziplora: Ziplora, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    for damage in (b"no snapshot " * 1000, b"", (there / "catalog.duckdb").read_bytes()[:20_000]):
        path.write_bytes(damage)
        said = ziplora("query", "FROM picks", "--snapshot", path)
        assert (said.code, said.err.split(":")[0]) == (2, "SNAPSHOT_DAMAGED"), said.err
        assert ziplora(*shlex.split(said.err.partition("anew: ziplora ")[2]), "--snapshot", path, "--json").code == 0
        assert ziplora("query", "FROM picks", "--snapshot", path, "--json").document


def test_the_notebook_opens_the_snapshot_by_marimo(
    there: Path, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        begun.append(command)
        return subprocess.CompletedProcess(command, 0)

    with monkeypatch.context() as patch:
        patch.setattr("flows.verbs.picking.subprocess.run", run)
        assert ziplora("notebook").code == 0
    (command,) = begun
    exported = [*command[:3], "export", "html", "--no-include-code", "--no-sandbox", "-o", "page.html", *command[4:]]
    subprocess.run(exported, check=True, capture_output=True, cwd=there)
    assert "ranked merges" in (there / "page.html").read_text(encoding="utf-8")
    assert ziplora("notebook", "--snapshot", there / "none.duckdb").err.startswith("SNAPSHOT_MISSING")
    monkeypatch.setattr("flows.verbs.picking.find_spec", lambda _: None)
    said = ziplora("notebook")
    assert (said.code, said.err.split()[0]) == (3, "MARIMO_MISSING")

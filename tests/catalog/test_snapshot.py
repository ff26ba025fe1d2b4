"""The snapshot is whole whenever it is opened, holds every row, and needs nothing but DuckDB."""

import json
import resource
import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import Engine

from catalog import facts, record, schema
from catalog.errors import CatalogueError
from catalog.snapshot import export_parquet, write_snapshot

from .samples import DIVERGED, DOG, NEON, NIGHT, adapter, done, merge, minutes, rows, score, start

HOSTILE = "'); DROP TABLE merges;-- <b>\n\u202e\x00\ud800\\u0000 \"=1+1"


@pytest.fixture
def filled(catalogue: Engine) -> Engine:
    """A row or more in every table."""
    start(catalogue)
    places = [facts.Alias(HOSTILE, "main", "a.safetensors", DOG, minutes(0))]
    record.record_adapters(catalogue, [adapter(DOG, "subject", facts={HOSTILE: [1, 0.1, None]})], places)
    reason = facts.Reason("BAD", HOSTILE, "Do nothing.")
    record.record_refusals(catalogue, [facts.Refusal(NIGHT, HOSTILE, "main", "b.bin", reason, minutes(0))])
    header = facts.Header(HOSTILE, "main", "b.bin", DOG, None, reason, 1, minutes(0))
    record.record_headers(catalogue, [header, replace(header, file_name="a", facts={HOSTILE: [0.1]}, reason=None)])
    done(catalogue, merge(), clip_i=0.1, dino=None)
    record.record_scores(catalogue, [replace(score(merge(), "dino", 0.7), scorer_id="dino:2")])
    record.record_failed(catalogue, merge(method="direct"), DIVERGED, NIGHT, minutes(1))
    record.record_request(catalogue, DOG, NEON, minutes(2))
    record.record_publication(catalogue, facts.Publication(merge().merge_id, "me/dog", "committed", "abc", minutes(3)))
    record.record_batch(catalogue, facts.Batch(NIGHT, 1, 2, None, minutes(3), HOSTILE))
    record.record_tombstones(catalogue, [facts.Tombstone("repository", "you/x", HOSTILE, minutes(4))], [])
    return catalogue


def _comparable(value: object) -> object:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


@pytest.mark.parametrize("model", schema.Base.__subclasses__(), ids=lambda model: model.__tablename__)
def test_every_row_is_there_to_the_last_digit(filled: Engine, tmp_path: Path, model: type[schema.Base]) -> None:
    path, table = tmp_path / "catalog.duckdb", model.__tablename__
    write_snapshot(filled, path)
    together = sorted(rows(filled, model), key=lambda row: getattr(row, "merge_id", ""))  # those of a merge
    written = [tuple(map(_comparable, row)) for row in together]
    with duckdb.connect(path, read_only=True) as snapshot:
        cursor = snapshot.execute(f"FROM {table}")
        is_json = [str(column[1]) == "JSON" for column in cursor.description]
        found = [
            tuple(_comparable(json.loads(value) if json_ and value is not None else value) for json_, value in pairs)
            for pairs in (zip(is_json, row, strict=True) for row in cursor.fetchall())
        ]
    assert found == written
    assert written


def test_views_and_macros_answer(filled: Engine, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    write_snapshot(filled, path)
    with duckdb.connect(path, read_only=True) as snapshot:
        assert snapshot.execute("SELECT merge_id FROM finished_merges").fetchall() == [(merge().merge_id,)]
        assert snapshot.execute("SELECT count(*) FROM usable_adapters").fetchone() == (4,)
        assert snapshot.execute("SELECT subject, style FROM open_requests").fetchall() == [(DOG, NEON)]
        words = snapshot.execute("SELECT word, code FROM failures_of(?)", [NIGHT]).fetchall()
        assert words == [("refused", "BAD"), ("failed", "MERGE_DIVERGED")]


def test_an_empty_catalogue_has_a_snapshot_too(catalogue: Engine, tmp_path: Path) -> None:
    write_snapshot(catalogue, tmp_path / "catalog.duckdb")
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        assert snapshot.execute("FROM best_method_per_pair(['dino'])").fetchall() == []


def test_parquet_holds_every_table(filled: Engine, tmp_path: Path) -> None:
    write_snapshot(filled, tmp_path / "catalog.duckdb")
    for _ in range(2):
        written = export_parquet(tmp_path / "catalog.duckdb", tmp_path / "parquet")
    assert sorted(written) == sorted((tmp_path / "parquet").iterdir())
    assert {path.stem for path in written} == set(schema.Base.metadata.tables)
    with duckdb.connect() as connection:
        found = connection.execute("SELECT fact FROM read_parquet(?)", [str(tmp_path / "parquet/refusals.parquet")])
        (fact,) = found.fetchall()[0]
    assert fact == HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "?")


def test_parquet_keeps_the_order_of_long_rows_in_row_groups_of_few(catalogue: Engine, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    write_snapshot(catalogue, path)
    with duckdb.connect(path) as snapshot:
        long = "SELECT string_agg(md5((number * 1000 + part)::VARCHAR)) FROM range(500) AS parts(part)"
        snapshot.execute(
            f"INSERT INTO tombstones SELECT printf('%05d', number), 'adapter', ({long}), 'asked', now()::TIMESTAMP "
            "FROM range(5000) AS numbers(number) ORDER BY number"
        )
    export_parquet(path, tmp_path)
    with duckdb.connect() as connection:
        file = str(tmp_path / "tombstones.parquet")
        keys = connection.execute("SELECT tombstone_id FROM read_parquet(?)", [file]).fetchall()
        groups = connection.execute("SELECT max(row_group_num_rows) FROM parquet_metadata(?)", [file]).fetchone()
    assert keys == [(f"{number:05}",) for number in range(5000)]
    assert groups is not None
    assert groups[0] < 4096


def test_a_merge_is_found_by_its_index(filled: Engine, tmp_path: Path) -> None:
    write_snapshot(filled, tmp_path / "catalog.duckdb")
    with duckdb.connect(tmp_path / "catalog.duckdb", read_only=True) as snapshot:
        found = snapshot.execute("EXPLAIN ANALYZE FROM merges WHERE merge_id = ?", [merge().merge_id]).fetchall()
    assert "Index Scan" in str(found)


def test_parquet_that_cannot_be_written_is_told_and_what_was_there_stays(filled: Engine, tmp_path: Path) -> None:
    snapshot, folder = tmp_path / "catalog.duckdb", tmp_path / "parquet"
    with pytest.raises(CatalogueError, match="SNAPSHOT_MISSING"):
        export_parquet(snapshot, folder)
    write_snapshot(filled, snapshot)
    before = {path: path.read_bytes() for path in export_parquet(snapshot, folder)}
    with duckdb.connect(snapshot) as connection:
        connection.execute("DROP TABLE scores CASCADE")
    with pytest.raises(CatalogueError, match=r"PARQUET.*scores"):
        export_parquet(snapshot, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(CatalogueError, match="NOT_WRITABLE"):
        export_parquet(snapshot, tmp_path / "file")


def test_a_snapshot_that_cannot_be_written_is_told_and_the_old_one_stays(filled: Engine, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    write_snapshot(filled, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk does
    try:
        with pytest.raises(CatalogueError, match=r"SNAPSHOT_UNWRITTEN.*catalog\.duckdb cannot be written"):
            write_snapshot(filled, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.glob("*catalog.duckdb*")) == [
        ".catalog.duckdb.lock",
        "catalog.duckdb",
    ]


def test_an_old_reader_keeps_its_file_and_nothing_is_left_over(filled: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    path = folder / "catalog.duckdb"
    write_snapshot(filled, path)
    (folder / ".catalog.duckdb.building").mkdir()  # as a killed builder leaves it
    (folder / ".catalog.duckdb.building" / "new.duckdb").write_bytes(b"half")
    with duckdb.connect(path, read_only=True) as old:
        record.record_plan(filled, [merge(method="new")])
        write_snapshot(filled, path)
        assert old.execute("SELECT count(*) FROM merges").fetchone() == (2,)
    with duckdb.connect(path, read_only=True) as new:
        assert new.execute("SELECT count(*) FROM merges").fetchone() == (3,)
    assert {found.name for found in folder.iterdir()} == {"catalog.duckdb", ".catalog.duckdb.lock"}


def test_a_reader_never_sees_half_of_what_is_being_written(catalogue: Engine, tmp_path: Path) -> None:
    start(catalogue)
    path = tmp_path / "catalog.duckdb"
    write_snapshot(catalogue, path)
    enough = threading.Event()

    def write() -> None:
        for number in count():
            record.record_failed(catalogue, merge(method=str(number)), DIVERGED, NIGHT, minutes(1))
            if enough.is_set():
                return

    def build() -> None:
        while not enough.is_set():
            write_snapshot(catalogue, path)

    threads = [threading.Thread(target=work) for work in (write, build, build)]
    for thread in threads:
        thread.start()
    seen: list[tuple[int, int]] = []
    try:
        while len(set(seen)) < 5:
            seen.append(_counts(path))
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert all(merges == failures for merges, failures in seen)
    assert seen == sorted(seen)


def _counts(path: Path) -> tuple[int, int]:
    with duckdb.connect(path, read_only=True) as snapshot:
        counted = snapshot.execute("SELECT (SELECT count(*) FROM merges), (SELECT count(*) FROM failures)").fetchone()
    assert counted
    return counted[0], counted[1]

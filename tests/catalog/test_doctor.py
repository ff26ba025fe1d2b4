"""Where catalogue and store disagree is found, mended, and not found again."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete

from catalog import record, schema
from catalog.doctor import faults
from catalog.rebuild import rebuild

from .samples import DOG, INK, NEON, merge, rows
from .test_rebuild import FROM_FILES, export, export_at, fill

LOST = merge(DOG, NEON).merge_id


@pytest.fixture
def store(catalogue: Engine, tmp_path: Path) -> Path:
    """Of a finished night of two merges, with the files of each, an adapter's copy and a calibration."""
    store = tmp_path / "store"
    fill(catalogue, store, "me/dog", 0.5)  # a row tells no NaN from a missing number
    for style in (NEON, INK):
        folder = store / "merges" / merge(DOG, style).merge_id
        (folder / "previews").mkdir()
        (folder / "coefficients.safetensors").write_bytes(b"numbers")
        digest = hashlib.sha256(b"numbers").hexdigest()
        (folder / "result.json").write_text(json.dumps({"coefficients_sha256": digest}))
        (folder / "previews" / "a.png").write_bytes(b"picture")
        (folder / "previews" / "previews.json").write_text(json.dumps({"pictures": [{"file": "a.png"}]}))
    (store / "calibrations").mkdir()
    for ending in ("json", "safetensors"):
        (store / "calibrations" / f"one.{ending}").write_bytes(b"")
    return store


def _codes(engine: Engine, store: Path) -> list[tuple[str, str]]:
    return [(fault.reason.code, fault.item) for fault in faults(engine, store)]


def _mend(engine: Engine, store: Path) -> None:
    for fault in faults(engine, store):
        fault.repair()


def _age(path: Path) -> None:
    """It has lain there for two days."""
    at = path.stat().st_mtime - 2 * 86_400
    os.utime(path, (at, at))


def test_a_store_that_agrees_has_no_faults(catalogue: Engine, store: Path) -> None:
    assert _codes(catalogue, store) == []


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _flip(folder: Path) -> None:
    (folder / "coefficients.safetensors").write_bytes(b"lumbers")


def _spoil(folder: Path) -> None:
    (folder / "previews" / "previews.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_unlink("coefficients.safetensors"), "MERGE_DAMAGED"),
        (_unlink("result.json"), "MERGE_DAMAGED"),
        (_flip, "MERGE_DAMAGED"),
        (_unlink("previews/a.png"), "PICTURES_MISSING"),
        (_spoil, "PICTURES_MISSING"),
    ],
)
def test_a_merge_whose_files_are_lost_is_planned_again(
    catalogue: Engine, url: str, store: Path, damage: Callable[[Path], None], code: str
) -> None:
    damage(store / "merges" / LOST)
    assert _codes(catalogue, store) == [(code, LOST)]
    _mend(catalogue, store)
    assert _codes(catalogue, store) == []
    assert {row.merge_id: row.status for row in rows(catalogue, schema.Merge)}[LOST] == "planned"
    catalogue.dispose()
    assert rebuild(url, store).merges == 1  # nor does it come back as finished


def test_pictures_that_were_not_to_be_kept_are_no_fault(catalogue: Engine, store: Path) -> None:
    for path in (store / "merges" / LOST / "previews").iterdir():
        path.unlink()
    assert _codes(catalogue, store) == []


def test_a_finished_merge_without_row_is_recorded(catalogue: Engine, store: Path) -> None:
    unknown = merge(DOG, INK).merge_id
    before = export(catalogue, FROM_FILES)
    with catalogue.begin() as connection:
        for table in (schema.Ranking, schema.Summary, schema.Score, schema.Merge):
            connection.execute(delete(table).where(table.merge_id == unknown))
    assert _codes(catalogue, store) == [("ROW_MISSING", unknown)]
    _mend(catalogue, store)
    assert _codes(catalogue, store) == []
    assert export(catalogue, FROM_FILES) == before


def test_lost_sidecars_are_written_from_the_rows(catalogue: Engine, url: str, store: Path) -> None:
    before = export(catalogue, FROM_FILES)
    for path in [*store.rglob("facts.json"), *(store / "nights").iterdir()]:
        path.unlink()
    assert {code for code, _ in _codes(catalogue, store)} == {"SIDECAR_MISSING"}
    assert len(_codes(catalogue, store)) == 2 + 3 + 1
    _mend(catalogue, store)
    assert _codes(catalogue, store) == []
    with catalogue.begin() as connection:
        for table in reversed(schema.Base.metadata.sorted_tables):
            connection.execute(table.delete())
    catalogue.dispose()
    rebuild(url, store)
    assert export_at(url, FROM_FILES) == before


def test_what_nobody_knows_goes_to_the_trash_after_a_time_of_grace(catalogue: Engine, store: Path) -> None:
    unknown = [store / "merges" / "stranger", store / "adapters" / "stranger"]
    for folder in unknown:
        folder.mkdir()
        (folder / "it").write_bytes(b"of somebody")
    unfinished = store / "merges" / LOST / ".0123abcd-result.json"
    unfinished.write_bytes(b"{")
    assert _codes(catalogue, store) == []  # a night may be at it
    for path in (*unknown, unfinished):
        _age(path)
    named = [("OBJECT_UNKNOWN", "stranger")] * 2 + [("UNFINISHED", unfinished.name)]
    assert _codes(catalogue, store) == named
    _mend(catalogue, store)
    assert _codes(catalogue, store) == []
    trashed = [path for path in (store / "trash").rglob("*") if path.is_file()]
    assert sorted(path.name for path in trashed) == [unfinished.name, "it", "it"]


def test_a_folder_that_has_a_row_is_left_whatever_its_age(catalogue: Engine, store: Path) -> None:
    record.record_plan(catalogue, [merge(method="ties")])
    folder = store / "merges" / merge(method="ties").merge_id
    folder.mkdir()
    _age(folder)
    assert _codes(catalogue, store) == []


def test_damaged_copies_and_halves_of_calibrations_are_made_again(catalogue: Engine, store: Path) -> None:
    copy = store / "adapters" / DOG / f"{DOG}.safetensors"
    copy.write_bytes(b"something else")
    half = store / "calibrations" / "two.safetensors"
    half.write_bytes(b"")
    _age(half)
    assert _codes(catalogue, store) == [("ADAPTER_DAMAGED", DOG), ("CALIBRATION_DAMAGED", "two")]
    _mend(catalogue, store)
    assert _codes(catalogue, store) == []
    assert not copy.exists()
    assert (store / "adapters" / DOG / "facts.json").is_file()

"""A place of nights through bad days: the catalogue is lost, files are lost, old pictures go."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from catalog import schema
from catalog.queries import finished_merge_ids
from catalog.schema import open_catalogue
from flows.nightly import nightly
from tests.catalog.test_rebuild import FROM_FILES, export_at

from .conftest import Settle, Ziplora
from .world import DIRECT, ONE_PAIR, Place

ONE: dict[str, Any] = {"pairs": ONE_PAIR["pairs"], "methods": DIRECT}


def _faults(there: Place, ziplora: Ziplora, *more: str) -> tuple[int, list[str]]:
    said = ziplora("doctor", there.config, "--json", *more)
    codes = [one["what"].split()[0] for one in said.document]
    return said.code, [code for code in codes if code.isupper()]


def test_a_lost_catalogue_comes_back_and_nothing_is_done_again(place: Settle, ziplora: Ziplora) -> None:
    there = place(**ONE)
    nightly(str(there.config))
    before = export_at(there.catalogue, FROM_FILES)
    (there.folder / "catalog.sqlite").unlink()
    said = ziplora("rebuild", there.config, "--json")
    assert (said.code, said.document["merges"], said.document["left_out"]) == (0, 1, [])
    assert export_at(there.catalogue, FROM_FILES) == before
    again = nightly(str(there.config))
    assert (again.merged, again.finished_before) == (0, 1)


def test_a_catalogue_comes_back_from_what_other_machines_left_in_a_shared_store(
    place: Settle, ziplora: Ziplora, tmp_path: Path
) -> None:
    there = place(**ONE, store=f"file://{tmp_path / 'shared'}")
    nightly(str(there.config))
    before = export_at(there.catalogue, FROM_FILES)
    (there.folder / "catalog.sqlite").unlink()
    shutil.rmtree(there.folder / "store" / "merges")
    assert ziplora("rebuild", there.config, "--json").document["merges"] == 1
    assert export_at(there.catalogue, FROM_FILES) == before


def test_lost_coefficients_are_found_and_learned_again(place: Settle, ziplora: Ziplora) -> None:
    there = place(**ONE)
    nightly(str(there.config))
    assert _faults(there, ziplora) == (0, [])
    (folder,) = (there.folder / "store" / "merges").iterdir()
    kept = (folder / "coefficients.safetensors").read_bytes()
    (folder / "coefficients.safetensors").unlink()
    assert _faults(there, ziplora) == (1, ["MERGE_DAMAGED"])
    assert _faults(there, ziplora, "--repair") == (0, ["MERGE_DAMAGED"])
    assert _faults(there, ziplora) == (0, [])
    assert nightly(str(there.config)).merged == 1
    assert (folder / "coefficients.safetensors").read_bytes() == kept
    assert _faults(there, ziplora) == (0, [])


def test_a_shared_store_is_not_judged_by_one_machines_copies(place: Settle, ziplora: Ziplora, tmp_path: Path) -> None:
    there = place(**ONE, store=f"file://{tmp_path / 'shared'}")
    said = ziplora("doctor", there.config)
    assert (said.code, said.err.split()[0]) == (2, "STORE_SHARED")


def test_old_pictures_go_and_the_merge_can_still_be_exported(place: Settle, ziplora: Ziplora) -> None:
    there = place(**ONE)
    nightly(str(there.config))
    catalogue = open_catalogue(there.catalogue)
    (merge_id,) = finished_merge_ids(catalogue)
    folder = there.folder / "store" / "merges" / merge_id
    there.set(**ONE, keep={"days": 1})
    nightly(str(there.config))
    assert (folder / "previews" / "previews.json").is_file()  # it is of today
    with catalogue.begin() as connection:
        connection.execute(update(schema.Merge).values(finished_at=datetime.now(UTC) - timedelta(days=2)))
    report = nightly(str(there.config))
    assert (report.merged, report.finished_before, report.failed) == (0, 1, {})
    assert not (folder / "previews").exists()
    (page,) = (Path(report.gallery).parent / "pairs").glob("*.html")
    assert "no preview yet" in page.read_text()
    out = there.folder / "it.safetensors"
    assert ziplora("export", merge_id, "-o", out, "--catalogue", there.catalogue).code == 0
    assert out.is_file()
    assert _faults(there, ziplora) == (0, [])
    arguments = ("publish", merge_id, "--namespace", "me", "--catalogue", there.catalogue)
    assert ziplora(*arguments).err.split()[0] == "PICTURES_GONE"

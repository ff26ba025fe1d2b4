"""A night as people know it: what is new is merged, what is bad is refused with its reason, what is done is left."""

import json
from pathlib import Path

from catalog.queries import finished_merge_ids
from catalog.schema import open_catalogue
from catalog.snapshot import ask
from flows.nightly import Report, nightly

from .conftest import Settle
from .world import Place


def test_a_night_merges_every_pair_with_every_method(night: tuple[Place, Report]) -> None:
    there, report = night
    assert (report.merged, report.failed, report.finished_before) == (8, {}, 0)
    assert len(finished_merge_ids(open_catalogue(there.catalogue))) == 8
    merges = there.folder / "store" / "merges"
    for folder in merges.iterdir():
        assert (folder / "coefficients.safetensors").is_file()
        assert (folder / "previews" / "sheet.png").is_file()
        assert len(json.loads((folder / "scores.json").read_text())) == 3
    _, rows = ask(there.folder / "catalog.duckdb", "SELECT count(*) FROM merges WHERE status = 'done'")
    assert rows == [(8,)]
    _, rows = ask(there.folder / "catalog.duckdb", "SELECT count(*) FROM merges WHERE pair_seconds > seconds")
    assert rows == [(8,)], "pictures and scores take their time"


def test_every_bad_adapter_is_refused_with_its_code(night: tuple[Place, Report], world: Path) -> None:
    there, report = night
    codes: dict[str, str] = json.loads((world / "faults" / "codes.json").read_text())
    _, rows = ask(there.folder / "catalog.duckdb", "SELECT repository, code FROM refusals")
    assert dict(rows) == {f"{name}-lora": code for name, code in codes.items()}
    assert sum(report.refused.values()) == len(codes)


def test_the_gallery_shows_every_pair(night: tuple[Place, Report]) -> None:
    _, report = night
    data = (Path(report.gallery).parent / "data.js").read_text()
    assert all(f'"name":"{name}"' in data for name in ("robot", "fish", "neon", "bricks"))


def test_a_second_night_plans_nothing_and_one_more_adapter_brings_only_its_own_pairs(
    place: Settle, world: Path
) -> None:
    there = place(pairs={"include": ["* x neon-lora"]})
    assert nightly(str(there.config)).merged == 4
    again = nightly(str(there.config))
    assert (again.merged, again.finished_before) == (0, 4)
    there.add(world)
    more = nightly(str(there.config))
    assert (more.merged, more.finished_before) == (2, 4)

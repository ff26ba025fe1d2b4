"""What goes wrong in a night is a row or a sentence, nothing is lost, and the next night completes it."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalog.queries import finished_merge_ids, open_requests
from catalog.schema import open_catalogue
from flows.nightly import Request, nightly
from flows.progress import watched

from .conftest import Settle, Ziplora
from .world import ONE_PAIR, UNMOVED, Place


def _finished(there: Place) -> frozenset[str]:
    return finished_merge_ids(open_catalogue(there.catalogue))


def test_a_pair_that_fails_is_a_row_and_the_others_are_done(place: Settle, ziplora: Ziplora) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=[UNMOVED, {"method": "direct"}])
    said = ziplora("run", there.config, "--json")
    assert said.code == 1
    assert said.document["merged"] == 1
    assert said.document["failed"] == {"MERGE_UNMOVED": 1}
    failed = ziplora("query", "SELECT code FROM failures", "--snapshot", there.folder / "catalog.duckdb", "--json")
    assert failed.document == [{"code": "MERGE_UNMOVED"}]


def test_after_three_failures_a_merge_waits_until_it_is_asked_for(place: Settle) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=[UNMOVED])
    for _ in range(3):
        assert nightly(str(there.config)).failed == {"MERGE_UNMOVED": 1}
    fourth = nightly(str(there.config))
    assert (fourth.failed, fourth.blocked) == ({}, 1)
    asked = nightly(str(there.config), (Request(subject="robot", style="neon"),))
    assert (asked.failed, asked.blocked) == ({"MERGE_UNMOVED": 1}, 0)
    assert len(open_requests(open_catalogue(there.catalogue))) == 1


def test_a_request_goes_first_and_is_closed_when_it_is_done(place: Settle, ziplora: Ziplora) -> None:
    there = place(methods=[{"method": "direct"}], limits={"pairs": 1})
    assert nightly(str(there.config)).postponed == 3
    at = ("--catalogue", there.catalogue)
    assert ziplora("request", "robot", "neon", *at).code == 0
    planned = ziplora("plan", there.config, "--json").document["merges"]
    assert (planned[0]["subject"], planned[0]["style"]) == ("robot-lora", "neon-lora")
    assert nightly(str(there.config)).merged == 1
    assert open_requests(open_catalogue(there.catalogue)) == []
    assert ziplora("show", next(iter(_finished(there))), *at).code == 0


def test_a_request_that_nobody_understands_is_said_and_ends_nothing(place: Settle) -> None:
    there = place(**ONE_PAIR, limits={"seconds": 1e-6})
    report = nightly(str(there.config), (Request(subject="ghost", style="neon"),))
    assert report.skipped == {"NAME_UNKNOWN": 1}


@pytest.mark.parametrize("limits", [{"seconds": 1e-6}, {"store_bytes": 1}])
def test_what_is_beyond_a_limit_is_left_for_the_next_night(place: Settle, limits: dict[str, float]) -> None:
    there = place(**ONE_PAIR, limits=limits)
    (there.folder / "store").mkdir()
    (there.folder / "store" / "something").write_bytes(b"12345")
    report = nightly(str(there.config))
    assert (report.merged, report.failed, report.postponed) == (0, {}, 1)


def test_a_store_that_is_full_is_said(place: Settle, ziplora: Ziplora) -> None:
    there = place(**ONE_PAIR, limits={"store_bytes": 1})
    (there.folder / "store").mkdir()
    (there.folder / "store" / "something").write_bytes(b"12345")
    said = ziplora("run", there.config)
    assert said.code == 1
    assert "1 lost batches STORE_FULL" in said.out
    assert ziplora("run", there.config, "--json").document["lost_batches"] == {"STORE_FULL": 1}


def test_licences_that_exclude_each_other_are_skipped_with_a_reason(place: Settle, ziplora: Ziplora) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=[{"method": "direct"}])
    for name, licence in (("robot", "cc-by-nc-4.0"), ("neon", "gpl-3.0")):
        card = there.folder / "adapters" / f"{name}-lora" / "README.md"
        card.write_text(card.read_text().replace("license: apache-2.0", f"license: {licence}"))
    report = nightly(str(there.config))
    ((code, count),) = report.skipped.items()
    assert (report.merged, count) == (0, 1)
    assert code.startswith("LICENCE_")
    (skipped,) = ziplora("plan", there.config, "--json").document["skipped"]
    assert skipped["code"] == code


def test_an_interruption_loses_nothing(place: Settle, ziplora: Ziplora) -> None:
    there = place(pairs={"include": ["robot-lora x *"]})

    def stop(what: str, done: int, total: int) -> None:
        if "neon" in what and done > 2:
            raise KeyboardInterrupt

    with watched(stop), pytest.raises(KeyboardInterrupt):
        nightly(str(there.config))
    before = _finished(there)
    assert len(before) == 2
    calibrations = {path: path.stat().st_mtime_ns for path in (there.folder / "store" / "calibrations").iterdir()}
    said = ziplora("run", there.config, "--json")
    assert (said.code, said.document["merged"], said.document["finished_before"]) == (0, 2, 2)
    assert before < _finished(there)
    assert all(path.stat().st_mtime_ns == written for path, written in calibrations.items())
    planned = ziplora("plan", there.config, "--json").document
    assert (planned["merges"], planned["finished"]) == ([], 4)


def test_nobody_waits_for_prefect_without_a_word(place: Settle, ziplora: Ziplora) -> None:
    heard: list[str] = []

    def stop(what: str, _done: int, _total: int) -> None:
        heard.append(what)
        raise KeyboardInterrupt

    with watched(stop):
        assert ziplora("run", place(**ONE_PAIR).config).code == 130
    assert heard == ["starting Prefect"]


def test_an_interrupted_command_says_so(place: Settle, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    there = place(**ONE_PAIR)
    monkeypatch.setattr("flows.scan.judge", stop)
    said = ziplora("run", there.config)
    assert said.code == 130
    assert said.err.strip().startswith("INTERRUPTED  ")
    assert said.err.strip().count("\n") == 0


def _no_room_for(name: str) -> Callable[[Path, Path], Path]:
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(path, target)

    return replace


@pytest.mark.parametrize("name", ["coefficients.safetensors", "previews.json", "scores.json", "catalog.duckdb"])
def test_a_full_disk_ends_the_night_in_a_sentence_and_the_next_completes_it(
    name: str, place: Settle, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=[{"method": "direct"}])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _no_room_for(name))
        said = ziplora("run", there.config, "--json")
    assert said.code == 3
    assert said.err.startswith("DISK_FULL  ")
    assert said.err.count("\n") == 1
    again = ziplora("run", there.config, "--json")
    assert again.code == 0
    assert again.document["merged"] + again.document["finished_before"] == 1

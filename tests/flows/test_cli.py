"""Every command, for people and for scripts: one JSON document, and of what goes wrong one sentence and a code."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from safetensors.torch import load_file

from flows.nightly import Report

from .conftest import Settle, Ziplora
from .world import ONE_PAIR, Place

_VERSIONS = {"python", "torch", "prefect", "duckdb"}


@pytest.fixture
def at(night: tuple[Place, Report]) -> tuple[str, str]:
    """The option that names the catalogue of the finished night."""
    return "--catalogue", night[0].catalogue


@pytest.fixture
def merge_id(night: tuple[Place, Report], at: tuple[str, str], ziplora: Ziplora) -> str:
    """A finished merge."""
    (first, *_) = ziplora("pick", "--method", "direct", *at, "--json").document
    merge_id: str = first["merge"]["merge_id"]
    return merge_id


def test_check_finds_nothing_wrong_with_a_sound_config(night: tuple[Place, Report], ziplora: Ziplora) -> None:
    assert ziplora("check", night[0].config, "--json").document == []
    assert ziplora("check", night[0].config).code == 0


def test_check_finds_all_that_is_wrong_at_once(place: Settle, ziplora: Ziplora) -> None:
    there = place(
        base_model={"id": "nowhere/to/be/found"},
        sources=[{"folder": "nowhere", "role": "subject"}],
        methods=[{"method": "ziplora", "parameters": {"stepps": 3}}],
    )
    said = ziplora("check", there.config, "--json")
    assert said.code == 2
    assert {one["code"] for one in said.document} == {"FOLDER_MISSING", "BASE_MISSING", "PARAMETER_INVALID"}
    people = ziplora("check", there.config)
    assert len(people.out.splitlines()) == 3
    assert ziplora("run", there.config).code == 2


def test_scan_says_what_is_usable_and_what_is_not(night: tuple[Place, Report], world: Path, ziplora: Ziplora) -> None:
    found = ziplora("scan", night[0].config, "--json").document
    assert sorted(one["repository"] for one in found if one["status"] == "usable") == [
        "bricks-lora",
        "fish-lora",
        "neon-lora",
        "robot-lora",
    ]
    people = ziplora("scan", night[0].config).out
    assert "4 of" in people
    assert "UNSUPPORTED_ADAPTER  dora-lora" in people


def test_plan_says_what_is_to_do(night: tuple[Place, Report], ziplora: Ziplora) -> None:
    there, _ = night
    done = ziplora("plan", there.config, "--json").document
    assert (done["merges"], done["finished"]) == ([], 8)
    assert ziplora("plan", there.config).code == 0


def test_pick_ranks_filters_and_names(night: tuple[Place, Report], at: tuple[str, str], ziplora: Ziplora) -> None:
    picked = ziplora("pick", *at, "--json").document
    scores = [one["merge"]["score_01"] for one in picked]
    assert scores == sorted(scores, reverse=True)
    assert scores
    robots = ziplora("pick", "--subject", "robot", *at, "--json").document
    assert {one["subject_name"] for one in robots} == {"robot"}
    assert ziplora("pick", "--licence", "openrail++", *at).code == 0


def test_show_tells_facts_and_why_the_story(merge_id: str, at: tuple[str, str], ziplora: Ziplora) -> None:
    for said in (merge_id[:10], "robot", "dora-lora"):
        story = ziplora("why", said, *at, "--json").document
        assert story["events"]
    assert ziplora("show", merge_id[:10], *at, "--json").document["kind"] == "merge"
    assert "UNSUPPORTED_ADAPTER" in ziplora("why", "dora-lora", *at).out.replace("\n", "")
    assert ziplora("show", "robot", *at).code == 0


def test_an_export_is_the_same_file_each_time(
    merge_id: str, at: tuple[str, str], ziplora: Ziplora, tmp_path: Path
) -> None:
    first, again, kohya = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "kohya"))
    said = ziplora("export", merge_id, "-o", first, *at, "--json").document
    assert ziplora("export", merge_id, "-o", again, *at).code == 0
    assert first.read_bytes() == again.read_bytes()
    assert said["size_bytes"] == first.stat().st_size
    assert ziplora("export", merge_id, "-o", kohya, "--dialect", "kohya", *at).code == 0
    assert all(name.startswith("lora_unet_") for name in load_file(kohya))


def test_an_export_of_a_smaller_rank_says_what_it_lost(
    merge_id: str, at: tuple[str, str], ziplora: Ziplora, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    uncut = ziplora("export", merge_id, "-o", whole, *at, "--json").document
    said = ziplora("export", merge_id, "-o", cut, "--rank", "3", *at, "--json").document
    assert (uncut["rank"], uncut["rank_error"]) == (8, None)
    assert said["rank"] == 3
    assert 0 < said["rank_error"] < 1
    assert said["size_bytes"] < uncut["size_bytes"]
    people = ziplora("export", merge_id, "-o", cut, "--rank", "3", *at).out.splitlines()
    assert people[1:] == [f"Cut to rank 3: off by {said['rank_error']:.2%} of the merge, the style's strength fixed."]
    assert len(ziplora("export", merge_id, "-o", whole, "--rank", "8", *at).out.splitlines()) == 1


def test_the_gallery_is_written_again(night: tuple[Place, Report], at: tuple[str, str], ziplora: Ziplora) -> None:
    assert Path(ziplora("gallery", *at, "--json").document["gallery"]).is_file()
    assert ziplora("gallery", *at).out.startswith("file://")


def test_the_snapshot_answers_sql(night: tuple[Place, Report], ziplora: Ziplora) -> None:
    at = ("--snapshot", night[0].folder / "catalog.duckdb")
    assert ziplora("query", "SELECT 1 AS one", *at, "--json").document == [{"one": 1}]
    assert "1 rows" in ziplora("query", "SELECT count(*) FROM merges", *at).out
    moments = "DATE '2026-11-26' AS day, TIME '02:00:00' AS hour, INTERVAL 90 SECOND AS took"
    odd = f"SELECT {moments}, 0.25 AS share, 'nan'::DOUBLE AS nothing, 'a'::BLOB AS bytes, '{UUID(int=1)}'::UUID AS id"
    said = {
        "day": "2026-11-26",
        "hour": "02:00:00",
        "took": "0:01:30",
        "share": 0.25,
        "nothing": None,
        "bytes": "61",
        "id": str(UUID(int=1)),
    }
    assert ziplora("query", odd, *at, "--json").document == [said]


def test_the_snapshot_goes_out_as_parquet(night: tuple[Place, Report], ziplora: Ziplora, tmp_path: Path) -> None:
    to = ("--parquet", tmp_path / "tables", "--snapshot", night[0].folder / "catalog.duckdb")
    files = ziplora("query", *to, "--json").document
    assert {Path(one["file"]).stem for one in files} >= {"adapters", "merges", "scores"}
    assert {one["file"]: one["size_bytes"] for one in files} == {
        str(path): path.stat().st_size for path in (tmp_path / "tables").iterdir()
    }
    assert f"{len(files)} files" in ziplora("query", *to).out


def test_the_doctor_names_versions(ziplora: Ziplora) -> None:
    assert {one["what"] for one in ziplora("doctor", "--json").document} > _VERSIONS
    assert ziplora("doctor").code == 0


def test_two_folders_are_merged_without_catalogue_or_prefect(world: Path, ziplora: Ziplora, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    pair = (world / "adapters" / "robot-lora", world / "adapters" / "bricks-lora")
    base = ("--base", world / "base", "--method", "direct")
    said = ziplora("merge", *pair, "-o", out, *base, "--json")
    assert said.code == 0, said.err
    assert said.document["rank"] == said.document["export"]["rank"] == 8
    assert said.document["export"]["rank_error"] is None
    assert load_file(out)
    people = ziplora("merge", *pair, "-o", out, *base)
    assert "rank 8" in people.out
    cut = ziplora("merge", *pair, "-o", out, *base, "--rank", "5")
    assert "rank 5," in cut.out
    assert "Cut to rank 5: off by" in cut.out
    ties = ziplora("merge", *pair, "-o", out, *base[:2], "--method", "ties")
    assert "At the rank of both it is off by" in ties.out


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["run", "nowhere.yaml"], "CONFIG_MISSING", 2),
        (["plan", "nowhere.yaml"], "CONFIG_MISSING", 2),
        (["scan", "nowhere.yaml"], "CONFIG_MISSING", 2),
        (["show", "ffffffff", "AT"], "NAME_UNKNOWN", 2),
        (["why", "ffffffff", "AT"], "NAME_UNKNOWN", 2),
        (["export", "ffffffff", "-o", "x.safetensors", "AT"], "NAME_UNKNOWN", 2),
        (["export", "ffffffff", "-o", "x.safetensors", "--rank", "0", "AT"], "EXPORT_INVALID", 2),
        (["export", "ffffffff", "-o", "x.safetensors", "--style-strength", "nan", "AT"], "EXPORT_INVALID", 2),
        (["merge", "nowhere", "nowhere", "-o", "x.safetensors", "--rank", "-1"], "EXPORT_INVALID", 2),
        (["publish", "ffffffff", "AT"], "NAME_UNKNOWN", 2),
        (["request", "robot", "ghost", "AT"], "NAME_UNKNOWN", 2),
        (["pick", "--subject", "ghost", "AT"], "NAME_UNKNOWN", 2),
        (["pick", "--catalogue", "sqlite:///nowhere.sqlite"], "CATALOGUE_MISSING", 3),
        (["query", "SELECT 1", "--snapshot", "nowhere.duckdb"], "SNAPSHOT_MISSING", 2),
        (["query", "SELEC 1", "SNAPSHOT"], "SQL", 2),
        (["query", "SELECT * FROM nothing", "SNAPSHOT"], "SQL", 2),
        (["query", "SNAPSHOT"], "USAGE", 2),
        (["query", "SELECT 1", "--parquet", "tables", "SNAPSHOT"], "USAGE", 2),
        (["query", "--parquet", "tables", "--snapshot", "nowhere.duckdb"], "SNAPSHOT_MISSING", 2),
        (["query", "--parquet", "/dev/null/tables", "SNAPSHOT"], "NOT_WRITABLE", 2),
        (["merge", "nowhere", "nowhere", "-o", "x.safetensors"], "FILE_MISSING", 2),
        (["merge", "nowhere"], "USAGE", 2),
        (["pick", "--limt", "3"], "USAGE", 2),
        (["pick", "--limit", "0"], "USAGE", 2),
        (["export", "ffffffff", "-o", "x", "--dialect", "word"], "USAGE", 2),
        (["dance"], "USAGE", 2),
    ],
)
def test_what_is_wrong_is_one_sentence_with_a_code(
    arguments: list[str],
    code: str,
    exit_code: int,
    night: tuple[Place, Report],
    at: tuple[str, str],
    ziplora: Ziplora,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    meant: dict[str, tuple[Any, ...]] = {"AT": at, "SNAPSHOT": ("--snapshot", night[0].folder / "catalog.duckdb")}
    said = ziplora(*(part for argument in arguments for part in meant.get(argument, (argument,))))
    assert (said.code, said.err.split(":")[0].split()[0]) == (exit_code, code), said.err
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_an_unknown_key_is_named_with_its_nearest_known_one(place: Settle, ziplora: Ziplora) -> None:
    said = ziplora("run", place(methdos=[]).config)
    assert said.code == 2
    assert "did you mean 'methods'?" in said.err


def test_an_adapter_without_a_prompt_says_which_option_helps(world: Path, ziplora: Ziplora, tmp_path: Path) -> None:
    alone = tmp_path / "robot.safetensors"
    alone.write_bytes((world / "adapters" / "robot-lora" / "pytorch_lora_weights.safetensors").read_bytes())
    said = ziplora("merge", alone, world / "adapters" / "bricks-lora", "-o", tmp_path / "x.safetensors")
    assert (said.code, said.err.split()[0]) == (2, "NO_TRIGGER_PROMPT")
    assert "--subject-prompt" in said.err


def test_a_surprise_is_a_sentence_too(place: Settle, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("a surprise")

    monkeypatch.setattr("flows.scan.judge", fail)
    said = ziplora("scan", place(**ONE_PAIR).config)
    assert said.code == 3
    assert said.err.startswith("UNEXPECTED  ZeroDivisionError: a surprise")
    log = Path(said.err.partition("see ")[2].partition(",")[0])
    assert "Traceback" in log.read_text()
    log.unlink()

"""Machines with a store between them: what one has made the others take, and nothing is made twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from catalog.queries import finished_merge_ids
from catalog.schema import open_catalogue
from flows.nightly import nightly
from flows.tasks import complete_pair
from ziplora.backbone import Sdxl

from .conftest import Settle, Ziplora
from .world import DIRECT, MORE_PICTURES, ONE_PAIR, Place, settle

_MERGING, _DRAWING, _SCORING = "merge.method_named", "backbone.Sdxl.draw", "score.Scorer.embed_pictures"


@pytest.fixture(params=["folder", "S3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store that machines share."""
    if request.param == "folder":
        yield f"file://{tmp_path}/shared"
        return
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anybody")
    S3FileSystem.clear_instance_cache()
    S3FileSystem().mkdir("bucket")
    yield "s3://bucket/ziplora"
    server.stop()


def _forbid(monkeypatch: pytest.MonkeyPatch, *work: str) -> None:
    def do(*_arguments: object, **_options: object) -> None:
        raise AssertionError("this is done already")

    for name in work:
        monkeypatch.setattr(f"ziplora.{name}", do)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_machine_makes_nothing_again_and_its_gallery_has_all_pictures(
    world: Path, tmp_path: Path, prefect: None, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {**ONE_PAIR, "previews": MORE_PICTURES, "store": shared}
    one, other = (settle(tmp_path / name, world, **changes) for name in ("one", "other"))
    first = nightly(str(one.config))
    assert (first.merged, first.short_listed, first.failed) == (1, 1, {})
    _forbid(monkeypatch, _MERGING, _DRAWING)
    second = nightly(str(other.config))
    assert (second.merged, second.short_listed, second.failed) == (1, 1, {})
    pictures = _files(one.folder / "gallery" / "pictures")
    assert _files(other.folder / "gallery" / "pictures") == pictures
    assert len(pictures) > 6
    (merge_id,) = finished_merge_ids(open_catalogue(other.catalogue))
    folders = [there.folder / "store" / "merges" / merge_id for there in (one, other)]
    for name in ("coefficients.safetensors", "result.json", "scores.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_what_each_of_two_machines_has_made_is_there_for_both(
    world: Path, tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(style: str) -> dict[str, list[str]]:
        return {"include": [f"robot x {style}"]}

    calibrated: list[int] = []
    encode = Sdxl.encode

    def counted(backbone: Sdxl, pictures: Any) -> Any:
        calibrated.append(len(pictures))
        return encode(backbone, pictures)

    monkeypatch.setattr(Sdxl, "encode", counted)
    changes: dict[str, Any] = {"methods": ONE_PAIR["methods"], "store": f"memory://{tmp_path}/shared"}
    one = settle(tmp_path / "one", world, pairs=half("neon"), **changes)
    other = settle(tmp_path / "other", world, pairs=half("bricks"), **changes)
    assert [nightly(str(there.config)).merged for there in (one, other)] == [1, 1]
    assert len(calibrated) == 3
    _forbid(monkeypatch, _MERGING, _DRAWING, _SCORING)
    for there in (one, other):
        report = nightly(str(there.set(pairs=half("*"), **changes).config))
        assert (report.merged, report.finished_before, report.failed) == (1, 1, {})
    assert _files(one.folder / "gallery" / "pictures") == _files(other.folder / "gallery" / "pictures")


def test_pages_exports_and_publications_are_made_where_nothing_was_merged(
    place: Settle, tmp_path: Path, ziplora: Ziplora
) -> None:
    policy = {"least_score": 0.0}
    there = place(pairs=ONE_PAIR["pairs"], methods=DIRECT, publish=policy, store=f"file://{tmp_path}/shared")
    nightly(str(there.config))
    at = ("--catalogue", there.catalogue)
    (merge_id,) = finished_merge_ids(open_catalogue(there.catalogue))

    def made(name: str) -> tuple[dict[str, bytes], bytes, Any]:
        published = ziplora("publish", merge_id, "--namespace", "me", *at, "--json")
        assert ziplora("export", merge_id, "-o", tmp_path / name, *at).code == 0
        assert ziplora("gallery", *at).code == 0
        return _files(there.folder / "gallery" / "pictures"), (tmp_path / name).read_bytes(), published.document

    before = made("before.safetensors")
    shutil.rmtree(there.folder / "store")
    assert made("after.safetensors") == before


def test_a_store_that_is_lost_ends_the_night_in_a_sentence_and_the_next_completes_it(
    place: Settle, tmp_path: Path, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(pairs=ONE_PAIR["pairs"], methods=DIRECT, store=f"file://{tmp_path}/shared")

    put_file = LocalFileSystem.put_file

    def lost(files: Any, file: str, name: str) -> None:
        if "result" in name:
            raise ConnectionError("no route to host")
        put_file(files, file, name)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "put_file", lost)
        patched.setattr(complete_pair, "retry_delay_seconds", 0)
        said = ziplora("run", there.config)
    assert (said.code, said.err.split()[0]) == (3, "STORE_UNREACHABLE:")
    assert said.err.count("\n") == 1
    again = ziplora("run", there.config, "--json")
    assert (again.code, again.document["merged"], again.document["failed"]) == (0, 1, {})
    assert list((tmp_path / "shared" / "merges").glob("*/result.json"))


@pytest.mark.parametrize(
    ("store", "code"), [("nowhere://store", "STORE_URL"), ("file:///dev/null/store", "STORE_UNREACHABLE")]
)
def test_a_store_that_cannot_be_used_is_found_before_the_night(
    place: Settle, ziplora: Ziplora, store: str, code: str
) -> None:
    there: Place = place(**ONE_PAIR, store=store)
    (problem,) = ziplora("check", there.config, "--json").document
    assert problem["code"] == code
    said = ziplora("run", there.config)
    assert (said.code, said.err.split()[0]) == (3, code)
    assert not (there.folder / "catalog.sqlite").exists()

"""Two machines that share a store: what is there is whole, nobody's work is lost, and trouble is told in a sentence."""

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from catalog.errors import CatalogueError
from catalog.mirror import Mirror

Machine = tuple[Mirror, Path]


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def machines(url: str, tmp_path: Path) -> Sequence[Machine]:
    """Two machines with a folder each."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    return [(Mirror(url, folder), folder) for folder in folders]


def _result(folder: Path, text: str = "learned") -> tuple[Path, ...]:
    """Paths of a result; written on the machine that has a text for it."""
    files = tuple(folder / "merges" / "a1" / name for name in ("config.json", "coefficients", "result.json"))
    if text:
        files[0].parent.mkdir(parents=True)
        for file in files[1:]:
            file.write_text(text)
    return files


def _draw(folder: Path, *seeds: int, drawing: str = "20 steps") -> Path:
    """Pictures as a stage leaves them: files, and the record that names them."""
    pictures = folder / "singles" / "base"
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = [{"file": f"{drawing} {seed}.png", "prompt": "a cat", "seed": seed} for seed in seeds]
    for one in drawn:
        (pictures / str(one["file"])).write_text(f"{drawing} {one['seed']}")
    (pictures / "previews.json").write_text(json.dumps({"pictures": drawn, "drawing": drawing}))
    return pictures


def _shown(pictures: Path) -> dict[int, str]:
    """By seed what a gallery would show: the pictures that the record names and that are there."""
    record = json.loads((pictures / "previews.json").read_text())
    files = {one["seed"]: pictures / one["file"] for one in record["pictures"]}
    return {seed: file.read_text() for seed, file in files.items() if file.is_file()}


def test_a_result_goes_from_one_machine_to_the_other(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    other.fetch(*_result(there, ""))
    one.send(*_result(here))
    other.fetch(*_result(there, ""))
    absent, *files = _result(there, "")
    assert [file.read_text() for file in files] == ["learned", "learned"]
    assert not absent.exists()
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["coefficients", "result.json"]


def test_the_first_result_counts_and_a_machine_keeps_its_own(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    one.send(*_result(here, "first"))
    own = _result(there, "second")
    other.send(*own)
    other.fetch(*own)
    assert own[1].read_text() == "second"
    for file in _result(here, ""):
        file.unlink(missing_ok=True)
    one.fetch(*_result(here, ""))
    assert _result(here, "")[1].read_text() == "first"


def test_a_file_that_changes_is_replaced(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    for text in ("two pictures", "six pictures"):
        (here / "scores.json").write_text(text)
        one.replace(here / "scores.json")
    other.fetch(there / "scores.json")
    assert (there / "scores.json").read_text() == "six pictures"


@pytest.mark.parametrize("name", ["coefficients", "result.json"])
def test_what_was_sent_in_part_is_no_result_until_it_is_sent_again(
    name: str, machines: Sequence[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, here), (other, there) = machines
    result = _result(here)
    with monkeypatch.context() as patched:
        for kind in (LocalFileSystem, MemoryFileSystem):
            patched.setattr(kind, "put_file", _failing_at(name, kind.put_file))
        with pytest.raises(CatalogueError, match="STORE_UNREACHABLE"):
            one.send(*result)
    other.fetch(*_result(there, ""))
    assert list(there.iterdir()) == []
    one.send(*result)
    other.fetch(*_result(there, ""))
    assert _result(there, "")[-1].is_file()


def _failing_at(name: str, put: Callable[..., Any]) -> Callable[..., Any]:
    def put_file(files: Any, local: str, remote: str, **options: Any) -> Any:
        if name in remote:
            raise ConnectionError("gone")
        return put(files, local, remote, **options)

    return put_file


def test_a_file_that_is_cut_off_has_no_name_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(f"file://{tmp_path}/shared", tmp_path)
    (tmp_path / "scores.json").write_text("all of it")

    def cut_off(_files: Any, _local: str, remote: str, **_options: Any) -> None:
        Path(remote).write_text("all")
        raise OSError(errno.ENOSPC, "No space left on device", remote)

    monkeypatch.setattr(LocalFileSystem, "put_file", cut_off)
    with pytest.raises(OSError, match="No space left"):
        mirror.replace(tmp_path / "scores.json")
    assert list((tmp_path / "shared").iterdir()) == []


def test_pictures_of_two_machines_come_together(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    one.send_pictures(_draw(here, 0, 1))
    other.send_pictures(_draw(there, 2))
    for machine, folder in machines:
        machine.fetch_pictures(folder / "singles" / "base")
        assert _shown(folder / "singles" / "base") == {seed: f"20 steps {seed}" for seed in (0, 1, 2)}


def test_only_the_wanted_pictures_come_and_none_of_the_others_is_forgotten(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    one.send_pictures(_draw(here, 0, 1))
    pictures = there / "singles" / "base"
    other.fetch_pictures(pictures, [("a cat", 1), ("a dog", 1)])
    assert _shown(pictures) == {1: "20 steps 1"}
    other.send_pictures(_draw(there, 1, 2))
    one.fetch_pictures(here / "singles" / "base", [("a cat", 2)])
    assert _shown(here / "singles" / "base").keys() == {0, 1, 2}


def test_an_entry_that_the_record_lost_comes_back(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    one.send_pictures(_draw(here, 0, 1))
    pictures = there / "singles" / "base"
    other.fetch_pictures(pictures, [("a cat", 1)])
    one.replace(_draw(here, 1) / "previews.json")
    record = json.loads((pictures / "previews.json").read_text())
    (pictures / "new.png").write_text("new")
    record["pictures"].append({"file": "new.png", "prompt": "a cat", "seed": 2})
    (pictures / "previews.json").write_text(json.dumps(record))
    other.send_pictures(pictures)
    one.fetch_pictures(here / "singles" / "base")
    assert _shown(here / "singles" / "base").keys() == {0, 1, 2}


def test_pictures_that_are_here_are_not_asked_for(machines: Sequence[Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    (one, here), _ = machines
    pictures = _draw(here, 0, 1)
    for kind in (LocalFileSystem, MemoryFileSystem):
        monkeypatch.setattr(kind, "cat_file", None)
    one.fetch_pictures(pictures, [("a cat", 0), ("a cat", 1)])


def test_pictures_that_are_drawn_in_another_way_replace_the_earlier_ones(machines: Sequence[Machine]) -> None:
    (one, here), (other, there) = machines
    one.send_pictures(_draw(here, 0, 1))
    other.send_pictures(_draw(there, 0, drawing="50 steps"))
    one.fetch_pictures(here / "singles" / "base")
    assert _shown(here / "singles" / "base") == {0: "50 steps 0"}


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", '{"drawing": 1, "pictures": [{"file": "../secret", "prompt": "a cat", "seed": 0}]}'],
)
def test_a_damaged_or_forged_record_brings_nothing(machines: Sequence[Machine], record: str) -> None:
    (one, here), (other, there) = machines
    pictures = _draw(here, 0)
    (pictures.parent / "secret").write_text("secret")
    one.replace(pictures.parent / "secret")
    (pictures / "previews.json").write_text(record)
    one.replace(pictures / "previews.json")
    other.fetch_pictures(there / "singles" / "base")
    assert list(there.iterdir()) == []
    one.send_pictures(_draw(here, 0))
    other.fetch_pictures(there / "singles" / "base")
    assert _shown(there / "singles" / "base") == {0: "20 steps 0"}


def test_a_picture_that_somebody_removed_is_passed_over(machines: Sequence[Machine], url: str) -> None:
    (one, here), (other, there) = machines
    one.send_pictures(_draw(here, 0, 1))
    files, root = url_to_fs(url)
    files.rm_file(f"{root}/singles/base/20 steps 0.png")
    other.fetch_pictures(there / "singles" / "base")
    assert _shown(there / "singles" / "base") == {1: "20 steps 1"}


def test_a_store_that_can_be_used_passes_the_check_and_stays_as_it_is(machines: Sequence[Machine], url: str) -> None:
    (one, here), _ = machines
    one.check()
    assert list(here.iterdir()) == []
    files, root = url_to_fs(url)
    assert files.find(root) == []


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("nowhere://store", "STORE_URL", "Protocol not known: nowhere"),
        ("sftp://store/ziplora", "STORE_URL", "paramiko"),
        ("file:///dev/null/store", "STORE_UNREACHABLE", "NotADirectoryError"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_in_a_sentence(url: str, code: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=said) as caught:
        Mirror(url, tmp_path).check()
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []

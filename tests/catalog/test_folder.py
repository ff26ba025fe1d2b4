"""Repository folders on disk: one weights file each, or the reason why not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.candidate import Candidate, Unfit, choose_weights
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.folder import copy_file, read_repository, scan_folder, sha256_of

from .lora_files import card, weights

CANONICAL = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        ([CANONICAL, "other.safetensors"], None, CANONICAL),
        (["README.md", "dog.safetensors"], None, "dog.safetensors"),
        (["dog.SafeTensors"], None, "dog.SafeTensors"),
        (["dog.safetensors", "checkpoint-500/dog.safetensors"], None, "dog.safetensors"),
        (["checkpoint-500/dog.safetensors"], None, "checkpoint-500/dog.safetensors"),
        (["dog.safetensors", "optimizer.safetensors", "training_args.bin"], None, "dog.safetensors"),
        (["a.safetensors", "b.safetensors"], "b.safetensors", "b.safetensors"),
        (["a.safetensors", "b.safetensors"], None, "AMBIGUOUS_FILE"),
        (["a.safetensors"], "b.safetensors", "FILE_MISSING"),
        (["dog.bin", "README.md"], None, "PICKLE_REFUSED"),
        (["a.safetensors", "dog.ckpt"], "dog.ckpt", "PICKLE_REFUSED"),
        (["README.md"], None, "NO_WEIGHTS"),
        ([], None, "NO_WEIGHTS"),
    ],
)
def test_the_weights_are_chosen_and_never_guessed(names: list[str], wanted: str | None, chosen: str) -> None:
    answer = choose_weights(names, wanted)
    assert (answer.code if isinstance(answer, Reason) else answer) == chosen


@pytest.mark.parametrize(
    "name",
    [
        "../dog",
        "/etc/dog",
        "a/../../dog",
        "C:\\dog",
        "\\\\host\\dog",
        "C:dog",
        "a//dog",
        "./dog",
        "dog\n",
        "dog\u202e",
        "d\0g",
        "é" * 200,
    ],
)
def test_a_name_that_leads_astray_is_refused(name: str) -> None:
    for wanted in (None, f"{name}.safetensors"):
        answer = choose_weights([f"{name}.safetensors", "README.md"], wanted)
        assert isinstance(answer, Reason)
        assert answer.code == "UNSAFE_NAME"
        assert answer.fact.isprintable()
        assert answer.fact.isascii()


def test_forty_candidates_are_counted_and_some_are_named() -> None:
    answer = choose_weights([f"step-{number:02}.safetensors" for number in range(40)])
    assert isinstance(answer, Reason)
    assert "40 safetensors files: 'step-00.safetensors'" in answer.fact
    assert answer.fact.endswith("and 32 more.")


def test_a_folder_offers_its_repositories_by_name(tmp_path: Path) -> None:
    for name in ("robot-lora", "cat-lora", ".cat-lora.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CANONICAL).write_bytes(weights())
    (tmp_path / "pickle-lora").mkdir()
    (tmp_path / "pickle-lora/dog.bin").write_bytes(b"\x80\x04")
    (tmp_path / "a-file").write_bytes(b"")
    cat, pickle, robot = scan_folder(tmp_path)
    assert [one.repository for one in (cat, pickle, robot)] == ["cat-lora", "pickle-lora", "robot-lora"]
    assert isinstance(pickle, Unfit)
    assert pickle.reason.code == "PICKLE_REFUSED"
    assert isinstance(cat, Candidate)
    assert (cat.revision, cat.size_bytes) == ("local", len(weights()))
    assert cat.sha256 == sha256_of(tmp_path / "cat-lora" / CANONICAL)
    assert [one.repository for one in scan_folder(tmp_path, ["r*", "nobody"])] == ["robot-lora"]
    with pytest.raises(CatalogueError, match="FOLDER_MISSING"):
        list(scan_folder(tmp_path / "nowhere"))


def test_a_card_shows_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(b"png")
    (tmp_path / "dog.safetensors").write_bytes(weights())
    widget = [{"text": "a sks dog", "output": {"url": "images/0.png"}}]
    (tmp_path / "README.md").write_bytes(card(license="mit", instance_prompt="a sks dog", widget=widget))
    found = read_repository(tmp_path)
    assert isinstance(found, Candidate)
    assert found.sample_paths == (tmp_path / "images/0.png",)
    assert (found.card.licence, found.card.instance_prompts) == ("mit", ("a sks dog",))
    (tmp_path / "README.md").write_bytes(b"---\na: [\n---\n")
    found = read_repository(tmp_path)
    assert isinstance(found, Candidate)
    assert [note.code for note in found.card.notes] == ["CARD_INVALID"]


def test_a_copy_is_named_by_its_content(tmp_path: Path) -> None:
    repository, adapters = tmp_path / "dog", tmp_path / "store/adapters"
    repository.mkdir()
    (repository / "dog.safetensors").write_bytes(weights())
    found = read_repository(repository)
    assert isinstance(found, Candidate)
    path = copy_file(found, adapters)
    assert path == adapters / f"{found.sha256}.safetensors"
    assert sha256_of(path) == found.sha256
    assert copy_file(found, adapters) == path
    path.unlink()
    (repository / "dog.safetensors").write_bytes(weights(tensors=5))
    with pytest.raises(Refused, match="SOURCE_CHANGED"):
        copy_file(found, adapters)
    assert list(adapters.iterdir()) == []


@given(names=st.lists(st.text(max_size=300).map(lambda name: f"{name}.safetensors"), max_size=4))
def test_whatever_a_file_is_called_what_is_chosen_stays_inside_and_prints_as_it_is(names: list[str]) -> None:
    for wanted in (None, *names):
        chosen = choose_weights(names, wanted)
        if isinstance(chosen, str):
            assert (Path("/store/root") / chosen).resolve().is_relative_to("/store/root")
            assert chosen.isprintable()
            assert all(len(step.encode()) <= 255 for step in chosen.split("/"))
        else:
            assert chosen.fact.isascii(), "names in a message are escaped"

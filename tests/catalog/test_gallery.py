"""The gallery: whole, self-contained, harmless, and the same pictures that the store holds."""

import errno
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine

from catalog import facts, record
from catalog.errors import CatalogueError
from catalog.gallery import write_gallery
from catalog.gallery_contents import read_contents
from catalog.gallery_plots import curve_of, moved_by
from catalog.schema import open_catalogue

from .gallery_world import World, fill
from .samples import DOG, NEON, merge, result, start


class _Tags(HTMLParser):
    """What a browser would see in a page: tags, addresses and text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}={value}"
            if name in ("src", "href"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, World, Path]:
    """A small night with hostile names, and its gallery."""
    folder = tmp_path_factory.mktemp("night")
    engine = open_catalogue(f"sqlite:///{folder / 'catalog.sqlite'}", migrate=True)
    world = fill(engine, folder, subjects=3, styles=3)
    page = write_gallery(engine, world.store, folder / "gallery", singles=world.singles, base=world.base)
    return engine, world, page.parent


def _size(path: Path) -> int:
    with Image.open(path) as picture:
        assert picture.width == picture.height
        return picture.width


def _pages(gallery: Path) -> list[Path]:
    return [gallery / "index.html", gallery / "compare.html", *sorted((gallery / "pairs").glob("*.html"))]


def test_every_address_is_a_file_of_the_gallery_or_a_page_of_the_hub(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    assert len(_pages(gallery)) > 5
    for page in _pages(gallery):
        for address in _Tags(page).addresses:
            if not re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/tree/[0-9a-f]{40}", address):
                file = page.parent / address.partition("#")[0]
                assert file.resolve().is_relative_to(gallery.resolve()), address
                assert file.is_file(), address


def test_names_of_strangers_stay_text(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    ours = {"data.js", "common.js", "grid.js", "compare.js", "pair.js"}
    for page in _pages(gallery):
        tags = _Tags(page)
        scripts = {address.removeprefix("../") for address in tags.addresses if address.endswith(".js")}
        assert scripts <= ours
        assert tags.tags.count("script") == len(scripts)
        assert "\u202e" not in tags.text
        assert tags.tags.count("img") == tags.tags.count("figure") or page.parent.name == "pairs"
    index = _Tags(gallery / "index.html")
    assert "<script>document.title='owned'</script>" in index.text
    assert "{{ 7 * 7 }} {% raw %}" in index.text


def test_what_scripts_read_is_data_and_holds_every_pair_and_score(night: tuple[Engine, World, Path]) -> None:
    engine, _, gallery = night
    data = _data(gallery)
    contents = read_contents(engine)
    assert {one["name"] for one in data["styles"]} == {one.name for one in contents.styles}
    shown = {(pair["page"], merge["method"]): merge["score"] for pair in data["pairs"] for merge in pair["merges"]}
    assert shown == {
        (f"pairs/{pair.page}", merge.method): merge.score_01 if merge.score_01 is None else round(merge.score_01, 4)
        for pair in contents.pairs.values()
        for merge in pair.done
    }
    assert None in shown.values()


def test_a_method_with_steps_shows_its_curve_and_the_movement_of_each_block(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    articles = [part for page in (gallery / "pairs").iterdir() for part in page.read_text().split("<article")[1:]]
    for article in articles:
        learned = article.startswith(' id="ziplora"')
        assert article.count("<polyline") == (3 if learned else 0)
        assert article.count('<rect class="style"') == (4 if learned else 0)
    assert any(article.startswith(' id="ziplora"') for article in articles)


@pytest.mark.parametrize(
    "losses",
    [
        None,
        {},
        {"total": [1.0, 0.5]},
        {"curve": "<b>", "movement_by_block": ["mid_block"]},
        {"curve": [[0, 1.0]], "movement_by_block": {"mid_block": [0.5]}},
        {"curve": [[0, 1.0], [1, -1.0]], "movement_by_block": {"mid_block": [float("nan"), 0.5]}},
        {"curve": [[0, 1.0], [1]], "movement_by_block": {"<b>": [0.5, 0.5]}},
    ],
)
def test_losses_of_another_shape_draw_nothing(losses: dict[str, Any] | None) -> None:
    assert curve_of(losses) is None
    assert moved_by(losses) == ()


def test_a_curve_goes_from_corner_to_corner_and_blocks_from_in_to_out() -> None:
    curve = curve_of({"curve": [[0, 100.0], [5, 10.0], [10, 1.0]]})
    assert curve is not None
    assert curve.lines == (("joint", "0.0,0.0 150.0,50.0 300.0,100.0", 100.0, 1.0),)
    assert [one.block for one in moved_by(
        {"movement_by_block": {"up_blocks.0": [0.1, 0.2], "mid_block": [0.1, 0.2], "down_blocks.1": [0.1, 0.2]}}
    )] == ["down_blocks.1", "mid_block", "up_blocks.0"]  # fmt: skip


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def _data(gallery: Path) -> dict[str, Any]:
    """What the scripts read, with nothing around it that could run."""
    text = (gallery / "data.js").read_text(encoding="ascii")
    assert text.startswith("const GALLERY = ")
    assert text.endswith(";\n")
    found: dict[str, Any] = json.loads(text.removeprefix("const GALLERY = ").removesuffix(";\n"))
    return found


@pytest.mark.parametrize("links", [True, False])
def test_pictures_are_drawn_once(
    catalogue: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    previews = tmp_path / "store/merges" / merge().merge_id / "previews"
    previews.mkdir(parents=True)
    Image.effect_noise((256, 256), 50).convert("RGB").save(previews / "0000.png")
    (previews / "previews.json").write_text('{"pictures": [{"file": "0000.png", "prompt": "a dog", "seed": 1}]}')
    first = write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery").parent
    named = {path.name for path in (first / "pictures").iterdir()}
    assert len(named) == 2
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("drew a picture again"))
        if not links:
            patched.setattr(os, "link", _no_links)
        write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert {path.name for path in (first / "pictures").iterdir()} == named
    Image.new("RGB", (256, 256), "red").save(previews / "0000.png")
    write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert named.isdisjoint(path.name for path in (first / "pictures").iterdir())


def test_the_best_method_of_a_pair_comes_first(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    for page in (gallery / "pairs").glob("*.html"):
        shown = re.findall(r'<h3>(?:\w+) <span class="score[^>]*>([\d.–]+)<', page.read_text(encoding="utf-8"))
        scores = [-1.0 if score == "–" else float(score) for score in shown]
        assert scores == sorted(scores, reverse=True)


def test_what_was_not_merged_is_told_with_a_way_out(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    text = _Tags(gallery / "index.html").text
    for told in ("BASE_MISMATCH", "cross-attention is 768 wide", "Next: use an SDXL LoRA.", "LICENCE_NO_DERIVATIVES"):
        assert told in text


def test_small_pictures_are_copied_and_large_ones_made_smaller(catalogue: Engine, tmp_path: Path) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    previews = tmp_path / "store/merges" / merge().merge_id / "previews"
    previews.mkdir(parents=True)
    Image.effect_noise((64, 64), 50).convert("RGB").save(previews / "small.png")
    Image.effect_noise((1024, 1024), 50).convert("RGB").save(previews / "large.png")
    named = [{"file": name, "prompt": "a dog", "seed": 1} for name in ("small.png", "large.png")]
    (previews / "previews.json").write_text(json.dumps({"pictures": named}))
    gallery = write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery").parent
    sizes = {path: _size(path) for path in (gallery / "pictures").iterdir()}
    assert sorted((side, path.suffix) for path, side in sizes.items()) == [(64, ".png"), (768, ".webp")]
    (small,) = (path for path, side in sizes.items() if side == 64)
    with Image.open(small) as copied, Image.open(previews / "small.png") as original:
        assert copied.convert("RGB").tobytes() == original.tobytes()
    again = write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery").parent
    assert {path.name for path in (again / "pictures").iterdir()} == {path.name for path in sizes}
    assert sorted(path.name for path in tmp_path.iterdir() if "gallery" in path.name) == ["gallery"]


@pytest.mark.parametrize(
    "record_text", ["", "[]", "{", '{"pictures": [{"file": "../../../secret.png", "prompt": "", "seed": 1}]}']
)
def test_a_damaged_or_forged_record_shows_no_picture(catalogue: Engine, tmp_path: Path, record_text: str) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    previews = tmp_path / "store/merges" / merge().merge_id / "previews"
    previews.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (previews / "previews.json").write_text(record_text)
    page = write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    (pair,) = _data(page.parent)["pairs"]
    assert [merge["picture"] for merge in pair["merges"]] == [None]
    assert "no preview yet" in (page.parent / pair["page"]).read_text()
    assert list((page.parent / "pictures").iterdir()) == []


def test_an_empty_catalogue_has_a_gallery(catalogue: Engine, tmp_path: Path) -> None:
    page = write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert "Nothing is merged yet." in page.read_text()


def test_a_published_merge_is_loaded_from_its_commit(catalogue: Engine, tmp_path: Path) -> None:
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    at = facts.Publication(merge().merge_id, "me/dog-neon", "committed", "c0ffee", result().finished_at)
    page = (
        write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery").parent / f"pairs/{DOG[:16]}-{NEON[:16]}.html"
    )
    assert f"ziplora export {merge().merge_id[:12]}" in page.read_text()
    record.record_publication(catalogue, at)
    write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert '"me/dog-neon"' in _Tags(page).text
    assert 'revision="c0ffee"' in _Tags(page).text
    assert "subfolder" not in _Tags(page).text
    record.record_publication(catalogue, replace(at, status="verified", folder="dog-neon-0123abcd"))
    write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert 'subfolder="dog-neon-0123abcd"' in _Tags(page).text


def test_a_folder_of_something_else_is_left_alone(catalogue: Engine, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery/thesis.txt").write_text("years of work")
    with pytest.raises(CatalogueError, match="GALLERY_FOLDER"):
        write_gallery(catalogue, tmp_path / "store", tmp_path / "gallery")
    assert (tmp_path / "gallery/thesis.txt").read_text() == "years of work"

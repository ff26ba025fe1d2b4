"""The gallery: whole, self-contained, harmless, and the same pictures that the store holds."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from catalog import facts, record
from catalog.errors import CatalogueError
from catalog.gallery import write_gallery
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
    return [gallery / "index.html", *sorted((gallery / "pairs").glob("*.html"))]


def test_every_address_is_a_file_of_the_gallery_or_a_page_of_the_hub(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    assert len(_pages(gallery)) > 5
    for page in _pages(gallery):
        for address in _Tags(page).addresses:
            if not re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/tree/[0-9a-f]{40}", address):
                assert (page.parent / address).resolve().is_relative_to(gallery.resolve()), address
                assert (page.parent / address).is_file(), address


def test_names_of_strangers_stay_text(night: tuple[Engine, World, Path]) -> None:
    *_, gallery = night
    for page in _pages(gallery):
        tags = _Tags(page)
        assert tags.tags.count("script") == 1
        assert "\u202e" not in tags.text
    index = _Tags(gallery / "index.html")
    assert "<script>document.title='owned'</script>" in index.text
    assert "{{ 7 * 7 }} {% raw %}" in index.text
    assert index.tags.count("img") == index.tags.count("figure")


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
    assert "no preview yet" in page.read_text()
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


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_strangers_name(night: tuple[Engine, World, Path], tmp_path: Path) -> None:
    *_, gallery = night
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Found no Chromium.")
    for page in _pages(gallery)[:4]:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        profile = f"--user-data-dir={tmp_path / page.stem}"
        command = [browser, *flags, profile, "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom"]
        seen = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        title = re.search(r"<title>(.*?)</title>", seen.stdout)
        assert title is not None
        assert title[1] != "owned"
        assert "CONSOLE" not in seen.stderr
    assert 'id="filters"' in seen.stdout or "Methods side by side" in seen.stdout or "The merge" in seen.stdout

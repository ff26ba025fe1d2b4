"""The gallery in a real browser: what people see, find and press, and how long it takes at 10,000 merges."""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from catalog.gallery import write_gallery
from catalog.schema import open_catalogue

from .browser import Browser, browser
from .gallery_world import fill, fill_many

TITLES = "[...document.querySelectorAll('.cells .cell')].map((one) => one.title)"
FOCUSED = "document.activeElement.title"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects in three styles, two of them with hostile names."""
    folder = tmp_path_factory.mktemp("night")
    engine = open_catalogue(f"sqlite:///{folder / 'catalog.sqlite'}", migrate=True)
    world = fill(engine, folder, subjects=3, styles=3)
    return write_gallery(engine, world.store, folder / "gallery", singles=world.singles, base=world.base).parent


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(shared_page: Browser, gallery: Path) -> Iterator[Browser]:
    """A browser on the grid, which in the end has complained of nothing and asked nobody else."""
    shared_page.open((gallery / "index.html").as_uri())
    yield shared_page
    assert shared_page.complaints == []
    assert [one for one in shared_page.requests if not one.startswith((gallery.as_uri(), "about:"))] == []


def _set(page: Browser, name: str, value: str) -> None:
    page.value(
        f"filters.elements.{name}.value = {value!r}; filters.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def _data(page: Browser) -> dict[str, Any]:
    found: dict[str, Any] = page.value("GALLERY")
    return found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_page_fits_its_window_and_runs_nothing_of_a_strangers_name(
    page: Browser, gallery: Path, width: int, dark: bool
) -> None:
    pairs = sorted((gallery / "pairs").iterdir())
    for file in (gallery / "index.html", gallery / "compare.html", *pairs[:3]):
        page.open(file.as_uri(), width=width, dark=dark)
        assert page.value("document.title") != "owned"
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("[...document.images].filter((one) => one.complete && !one.naturalWidth).length") == 0
        red, *_ = map(int, re.findall(r"\d+", page.value("getComputedStyle(document.body).backgroundColor")))
        assert (red < 128) == dark


def test_the_grid_shows_each_pair_with_its_best_score(page: Browser) -> None:
    data = _data(page)
    assert len(page.value(TITLES)) == len(data["pairs"])
    scores = page.value("[...document.querySelectorAll('.cells .cell .score')].map((one) => one.textContent)")
    best = [pair["merges"][0]["score"] for pair in data["pairs"] if pair["merges"]]
    assert scores == ["–" if score is None else f"{score:.2f}" for score in best]


def test_filters_leave_what_fits(page: Browser) -> None:
    data = _data(page)
    name = data["subjects"][0]["name"]
    _set(page, "search", name.upper())
    assert {title.partition(" × ")[0] for title in page.value(TITLES)} == {name}
    assert len(page.value("[...document.querySelectorAll('.sides .head')]")) == 1
    _set(page, "search", "")
    _set(page, "least", "0.5")
    assert len(page.value(TITLES)) == sum(
        bool(pair["merges"]) and (pair["merges"][0]["score"] or 0) >= 0.5 for pair in data["pairs"]
    )
    _set(page, "least", "0")
    licence = data["pairs"][0]["licence"]
    _set(page, "licence", licence)
    finished = [pair for pair in data["pairs"] if pair["merges"]]
    assert len(page.value(TITLES)) == sum(pair["licence"] == licence for pair in finished)
    _set(page, "licence", "")
    _set(page, "method", "direct")
    wanted = sum(any(merge["method"] == "direct" for merge in pair["merges"]) for pair in finished)
    assert len(page.value(TITLES)) == wanted
    assert set(page.value("[...document.querySelectorAll('.cell .method')].map((one) => one.textContent)")) == {
        "direct"
    }


def test_what_matches_nothing_says_so_and_how_to_go_on(page: Browser) -> None:
    _set(page, "search", "no such thing")
    assert page.value("!nothing.hidden && grid.hidden")
    page.value("document.getElementById('clear').click()")
    assert page.value("nothing.hidden && !grid.hidden")
    assert page.value("filters.elements.search.value") == ""


def test_the_best_come_first_and_those_without_a_score_last(page: Browser) -> None:
    _set(page, "order", "best")
    shown = page.value("[...document.querySelectorAll('.cells .cell .score')].map((one) => one.textContent)")
    scores = [-1.0 if score == "–" else float(score) for score in shown]
    assert scores == sorted(scores, reverse=True)


def test_a_view_is_in_its_address(page: Browser, gallery: Path) -> None:
    _set(page, "method", "direct")
    address = page.value("location.href")
    page.open(address)
    assert page.value("filters.elements.method.value") == "direct"


def test_keys_search_move_open_turn_and_go_back_to_the_same_view(page: Browser) -> None:
    _set(page, "least", "0.2")
    page.press("/", "/")
    assert page.value("document.activeElement.name") == "search"
    page.press("ArrowDown")
    first = page.value(FOCUSED)
    page.press("ArrowRight")
    right = page.value(FOCUSED)
    page.press("ArrowDown")
    assert len({first, right, page.value(FOCUSED)}) == 3
    assert right.partition(" × ")[0] == first.partition(" × ")[0]
    page.press("Enter", "\r")
    page.wait_for("document.querySelector('.command button')")
    before = page.value("location.href")
    page.press("ArrowRight")
    page.wait_for(f"location.href !== {before!r} && document.querySelector('.command button')")
    page.press("Escape")
    page.wait_for("document.querySelector('.cells .cell')")
    assert page.value("filters.elements.least.value") == "0.2"
    page.value("filters.elements.search.focus()")
    page.press("Escape")
    assert page.value("filters.elements.least.value") == "0"


def test_two_methods_are_compared_by_their_difference(page: Browser, gallery: Path) -> None:
    page.open((gallery / "compare.html").as_uri())
    both = [
        {merge["method"]: merge["score"] for merge in pair["merges"]}
        for pair in _data(page)["pairs"]
        if len(pair["merges"]) == 2
    ]
    gains = [one["ziplora"] - one["direct"] for one in both if None not in one.values()]
    shown = page.value("compared({first: 'direct', second: 'ziplora', search: ''}).map((one) => one.gain)")
    assert [one for one in shown if one is not None] == pytest.approx(sorted(gains, reverse=True))
    assert len(shown) == len(both)
    won = sum(gain > 0 for gain in gains)
    assert f"ziplora wins{100 * won / len(gains):.0f} %" in page.value("summary.textContent")
    _set(page, "first", "ziplora")
    _set(page, "second", "direct")
    assert page.value("document.querySelectorAll('.row').length") == len(both)
    assert f"ziplora wins{100 * won / len(gains):.0f} %" in page.value("summary.textContent")


def test_command_lines_can_be_copied(page: Browser, gallery: Path) -> None:
    page.open(next((gallery / "pairs").iterdir()).as_uri())
    page.value("document.querySelector('.command button').click()")
    page.wait_for("document.querySelector('.command button').textContent !== 'copy'")
    assert page.value("getSelection().toString()").startswith("ziplora export ")


@pytest.mark.slow
def test_ten_thousand_merges_are_painted_in_two_seconds_and_filtered_in_three_tenths(tmp_path: Path) -> None:
    engine = open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    world = fill_many(engine, tmp_path, subjects=100, styles=50)
    index = write_gallery(engine, world.store, tmp_path / "gallery")
    with browser(tmp_path / "profile") as page:
        page.open(index.as_uri())
        page.wait_for("performance.getEntriesByName('first-contentful-paint').length")
        painted = page.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        assert painted <= 2000
        assert len(_data(page)["pairs"]) == 5000
        assert 20 < page.value("document.querySelectorAll('.cell').length") < 400
        filters = (
            ("search", "subject-042", ""),
            ("search", "style-01", ""),
            ("method", "direct", ""),
            ("least", "0.5", "0"),
        )
        for name, on, off in filters:
            spent = [page.value(_TIMED % (name, value)) for value in (on, off) * 3]
            assert median(spent) <= 300, (name, spent)
        page.value("grid.scrollTo(2000, 3000)")
        page.wait_for("document.elementFromPoint(640, 500).closest('.cell')?.title.startsWith('subject-02')")
        assert page.value("document.querySelector('.heads .head').textContent") > "style-010"
        assert page.value("document.querySelector('.sides .head').textContent") > "subject-010"
        assert page.complaints == []
        assert [one for one in page.requests if not one.startswith((index.parent.as_uri(), "about:"))] == []


_TIMED = """new Promise((done) => {
  const began = performance.now();
  filters.elements.%s.value = '%s';
  filters.dispatchEvent(new Event('input', {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""
"""Milliseconds from a change of a filter until its picture is painted."""

"""A folder of pages that anybody can open: every subject in every style, each pair with previews, scores and recipe.

It needs no server and asks nothing of the network; a stranger's text is shown letter by letter.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from sqlalchemy import Engine

from catalog.errors import CatalogueError
from catalog.gallery_contents import Contents, ShownAdapter, ShownMerge, ShownPair, read_contents
from catalog.names import one_line

_MARK = ".ziplora-gallery"
"""Says that a folder is a gallery, and may be replaced."""
_SMALL = 192
"""Pictures up to this side are enlarged with sharp pixels."""
_LARGE_SIDE, _GRID_SIDE = 768, 256
_STATIC = ("style.css", "gallery.js")


@dataclass(frozen=True)
class Shot:
    """A picture as a page shows it."""

    source: Path
    prompt: str
    seed: int


class _Pictures:
    """Copies pictures into a gallery under names made from their content; takes those of the last gallery again."""

    def __init__(self, folder: Path, earlier: Path) -> None:
        self._folder, self._earlier = folder, earlier
        self._named: dict[tuple[Path, int], str] = {}
        folder.mkdir()

    def add(self, source: Path, side: int) -> str:
        """The file name of a picture that is at most `side` pixels wide and high."""
        if (source, side) not in self._named:
            digest = hashlib.sha256(source.read_bytes()).hexdigest()[:24]
            names = (f"{digest}.png", f"{digest}-{side}.webp")
            self._named[source, side] = self._kept(names) or self._drawn(source, side, *names)
        return self._named[source, side]

    def _kept(self, names: Sequence[str]) -> str | None:
        for name in names:
            if (self._earlier / name).is_file() and not (self._folder / name).exists():
                shutil.copyfile(self._earlier / name, self._folder / name)
            if (self._folder / name).exists():
                return name
        return None

    def _drawn(self, source: Path, side: int, small: str, large: str) -> str:
        with Image.open(source) as picture:
            if max(picture.size) <= _SMALL:
                picture.save(self._folder / small, optimize=True)
                return small
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            picture.convert("RGB").save(self._folder / large, quality=88)
            return large


def write_gallery(
    engine: Engine,
    store: Path,
    folder: Path,
    *,
    singles: Mapping[str, Path] | None = None,
    base: Path | None = None,
) -> Path:
    """The gallery of a catalogue in `folder`, which it replaces when it is whole: the path of its first page.

    `singles` are the folders of pictures of each adapter alone, by sha256, and `base` that of the base model alone.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise CatalogueError("GALLERY_FOLDER", f"{folder} holds something else than a gallery. Name another folder.")
    unfinished = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    unfinished.mkdir(parents=True)
    try:
        contents = read_contents(engine)
        pictures = _Pictures(unfinished / "pictures", folder / "pictures")
        _Pages(contents, store, singles or {}, base, pictures).write(unfinished)
        for name in _STATIC:
            (unfinished / name).write_bytes((files("catalog") / "templates" / name).read_bytes())
        (unfinished / _MARK).write_text("made by ziplora; replaced whole by the next gallery\n", encoding="utf-8")
        _replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / "index.html"


def _replace(finished: Path, folder: Path) -> None:
    if folder.exists():
        earlier = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
        folder.rename(earlier)
        finished.rename(folder)
        shutil.rmtree(earlier)
    else:
        finished.rename(folder)


def _shots(folder: Path | None) -> tuple[Shot, ...]:
    """The pictures that a folder's record names; none when it has no record."""
    if folder is None:
        return ()
    try:
        record = json.loads((folder / "previews.json").read_text(encoding="utf-8"))
        shots = [Shot(folder / one["file"], one_line(one["prompt"]), one["seed"]) for one in record["pictures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(shot for shot in shots if shot.source.is_file() and shot.source.parent == folder)


class _Pages:
    """Fills the templates: pictures are found in the store and copied as the pages ask for them."""

    def __init__(
        self, contents: Contents, store: Path, singles: Mapping[str, Path], base: Path | None, pictures: _Pictures
    ) -> None:
        self._contents, self._store, self._singles, self._pictures = contents, store, singles, pictures
        self._base = {(shot.prompt, shot.seed): shot for shot in _shots(base)}
        self._templates = Environment(
            loader=PackageLoader("catalog"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "grid_picture": lambda shot: pictures.add(shot.source, _GRID_SIDE),
            "large_picture": lambda shot: pictures.add(shot.source, _LARGE_SIDE),
            "alone": cache(self._alone),
            "previews": cache(self._previews),
            "floor": self._floor,
            "percent": lambda position: round(100 * min(1.0, max(0.0, position)), 1),
            "now": datetime.now(UTC),
            "contents": contents,
        }

    def write(self, folder: Path) -> None:
        """All pages."""
        (folder / "pairs").mkdir()
        index = self._templates.get_template("index.html").render(root="")
        (folder / "index.html").write_text(index, encoding="utf-8")
        shown = [pair for pair in self._in_order() if pair.done]
        page = self._templates.get_template("pair.html")
        for number, pair in enumerate(shown):
            before, after = shown[number - 1], shown[(number + 1) % len(shown)]
            text = page.render(root="../", pair=pair, before=before, after=after)
            (folder / "pairs" / pair.page).write_text(text, encoding="utf-8")

    def _in_order(self) -> Sequence[ShownPair]:
        """Subject by subject, as the grid shows them."""
        pairs = self._contents.pairs
        order = (
            (subject.sha256, style.sha256) for subject in self._contents.subjects for style in self._contents.styles
        )
        return [pairs[one] for one in order if one in pairs]

    def _alone(self, adapter: ShownAdapter) -> Sequence[Shot]:
        """The pictures of one LoRA alone, those of its own prompt first."""
        shots = _shots(self._singles.get(adapter.sha256))
        return sorted(shots, key=lambda shot: shot.prompt != adapter.prompt)

    def _previews(self, merge: ShownMerge) -> Sequence[Shot]:
        return _shots(self._store / "merges" / merge.merge_id / "previews")

    def _floor(self, pair: ShownPair) -> Sequence[Shot]:
        """The base alone on the prompts and seeds of a pair."""
        wanted = [(shot.prompt, shot.seed) for shot in self._previews(pair.done[0])]
        return [self._base[one] for one in wanted if one in self._base]

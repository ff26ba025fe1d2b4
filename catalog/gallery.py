"""A folder of pages that anybody can open: every subject in every style, each pair with previews, scores and recipe.

It needs no server and asks nothing of the network; a stranger's text is shown letter by letter.
"""

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Engine

from catalog.errors import CatalogueError
from catalog.gallery_contents import Contents, ShownAdapter, ShownMerge, ShownPair, read_contents
from catalog.gallery_pictures import Pictures, Shot, shots_in

_MARK = ".ziplora-gallery"
"""Says that a folder is a gallery, and may be replaced."""
_LARGE_SIDE, _GRID_SIDE = 768, 256
_STATIC = ("style.css", "common.js", "grid.js", "compare.js", "pair.js")


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
        pictures = Pictures(unfinished, folder)
        _Pages(contents, store, singles or {}, base, pictures).write(unfinished)
        pictures.remember()
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


class _Row(NamedTuple):
    """One prompt and seed, in all ways in which it was drawn."""

    prompt: str
    seed: int
    floor: Shot | None
    merges: list[Shot | None]
    ceilings: list[Shot | None]


class _Pages:
    """Fills the templates: pictures are found in the store and copied as the pages ask for them."""

    def __init__(
        self, contents: Contents, store: Path, singles: Mapping[str, Path], base: Path | None, pictures: Pictures
    ) -> None:
        self._contents, self._store, self._singles, self._pictures = contents, store, singles, pictures
        self._shots = cache(shots_in)
        self._base = {(shot.prompt, shot.seed): shot for shot in shots_in(base)}
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
            "alone": self._alone,
            "sheet": self._sheet,
            "previews": self._previews,
            "percent": lambda position: round(100 * min(1.0, max(0.0, position)), 1),
            "now": datetime.now(UTC),
            "contents": contents,
        }

    def write(self, folder: Path) -> None:
        """All pages."""
        (folder / "pairs").mkdir()
        for name in ("index.html", "compare.html"):
            (folder / name).write_text(self._templates.get_template(name).render(root=""), encoding="utf-8")
        data = json.dumps(self._data(), separators=(",", ":"), allow_nan=False)
        (folder / "data.js").write_text(f"const GALLERY = {data};\n", encoding="ascii")
        shown = [pair for pair in self._in_order() if pair.done]
        page = self._templates.get_template("pair.html")
        for number, pair in enumerate(shown):
            before, after = shown[number - 1], shown[(number + 1) % len(shown)]
            text = page.render(root="../", pair=pair, before=before, after=after)
            (folder / "pairs" / pair.page).write_text(text, encoding="utf-8")

    def _data(self) -> dict[str, Any]:
        """What the scripts of grid and comparison read; subjects and styles by their places in these lists."""
        subjects, styles = self._contents.subjects, self._contents.styles
        places = {one.sha256: place for role in (subjects, styles) for place, one in enumerate(role)}
        return {
            "subjects": [{"name": one.name, "picture": self._small(self._alone(one))} for one in subjects],
            "styles": [{"name": one.name, "picture": self._small(self._alone(one))} for one in styles],
            "methods": self._contents.methods,
            "pairs": [
                {
                    "subject": places[pair.subject.sha256],
                    "style": places[pair.style.sha256],
                    "licence": pair.licence_shown,
                    "page": f"pairs/{pair.page}",
                    "merges": [self._merge_data(merge) for merge in pair.done],
                    "status": pair.merges[0].status,
                    "code": pair.merges[0].reason.code if pair.merges[0].reason else "",
                }
                for pair in self._in_order()
            ],
        }

    def _merge_data(self, merge: ShownMerge) -> dict[str, Any]:
        """A merge as the scripts read it, with its place between floor and ceiling by each metric."""
        return {
            "method": merge.method,
            "score": _rounded(merge.score_01),
            "positions": [[label, _rounded(score.position)] for label, score in merge.scores],
            "picture": self._small(self._previews(merge)),
        }

    def _small(self, shots: Sequence[Shot]) -> str | None:
        return self._pictures.add(shots[0].source, _GRID_SIDE) if shots else None

    def _in_order(self) -> Sequence[ShownPair]:
        """Subject by subject, as the grid shows them."""
        pairs = self._contents.pairs
        order = (
            (subject.sha256, style.sha256) for subject in self._contents.subjects for style in self._contents.styles
        )
        return [pairs[one] for one in order if one in pairs]

    def _alone(self, adapter: ShownAdapter) -> Sequence[Shot]:
        """The pictures of one LoRA alone, those of its own prompt first."""
        shots = self._shots(self._singles.get(adapter.sha256))
        return sorted(shots, key=lambda shot: shot.prompt != adapter.prompt)

    def _previews(self, merge: ShownMerge) -> Sequence[Shot]:
        return self._shots(self._store / "merges" / merge.merge_id / "previews")

    def _sheet(self, pair: ShownPair) -> list[_Row]:
        """Every prompt and seed of a pair, with what each LoRA alone makes of the seed."""
        drawn = [{(shot.prompt, shot.seed): shot for shot in self._previews(merge)} for merge in pair.done]
        alone = [{shot.seed: shot for shot in reversed(self._alone(one))} for one in (pair.subject, pair.style)]
        return [
            _Row(
                prompt,
                seed,
                self._base.get((prompt, seed)),
                [pictures.get((prompt, seed)) for pictures in drawn],
                [pictures.get(seed) for pictures in alone],
            )
            for prompt, seed in sorted({key for pictures in drawn for key in pictures})
        ]


def _rounded(position: float | None) -> float | None:
    return None if position is None else round(position, 4)

"""The pictures of a gallery: found in a store, made small once, and named by their content."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from catalog.names import one_line

_SMALL = 192
"""Pictures up to this side are enlarged with sharp pixels."""
_KNOWN = ".pictures.json"


@dataclass(frozen=True)
class Shot:
    """A picture as a page shows it."""

    source: Path
    prompt: str
    seed: int


def shots_in(folder: Path | None) -> tuple[Shot, ...]:
    """The pictures that a folder's record names; none when it has no record."""
    if folder is None:
        return ()
    try:
        record = json.loads((folder / "previews.json").read_text(encoding="utf-8"))
        shots = [Shot(folder / one["file"], one_line(one["prompt"]), one["seed"]) for one in record["pictures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(shot for shot in shots if shot.source.is_file() and shot.source.parent == folder)


class Pictures:
    """Puts pictures into a gallery; those of the last gallery are neither read nor drawn again."""

    def __init__(self, gallery: Path, earlier: Path) -> None:
        self._folder, self._earlier = gallery / "pictures", earlier / "pictures"
        self._list, self._known = gallery / _KNOWN, _digests(earlier / _KNOWN)
        self._used: dict[str, str] = {}
        self._named: dict[tuple[Path, int], str] = {}
        self._folder.mkdir()

    def add(self, source: Path, side: int) -> str:
        """The file name of a picture that is at most `side` pixels wide and high."""
        if (source, side) not in self._named:
            digest = self._digest(source)
            names = (f"{digest}.png", f"{digest}-{side}.webp")
            self._named[source, side] = self._kept(names) or self._drawn(source, side, *names)
        return self._named[source, side]

    def remember(self) -> None:
        """Write down what the next gallery need not read again."""
        self._list.write_text(json.dumps(self._used), encoding="utf-8")

    def _digest(self, source: Path) -> str:
        """Of the content, which is read only when the file is another than last time."""
        seen = source.stat()
        state = hashlib.sha256(f"{source} {seen.st_size} {seen.st_mtime_ns}".encode()).hexdigest()[:24]
        digest = self._known.get(state) or hashlib.sha256(source.read_bytes()).hexdigest()[:24]
        self._used[state] = digest
        return digest

    def _kept(self, names: Sequence[str]) -> str | None:
        for name in names:
            if (self._folder / name).exists():
                return name
            if (self._earlier / name).is_file():
                self._take(name)
                return name
        return None

    def _take(self, name: str) -> None:
        """As a link where the file system has links."""
        try:
            os.link(self._earlier / name, self._folder / name)
        except OSError:
            shutil.copyfile(self._earlier / name, self._folder / name)

    def _drawn(self, source: Path, side: int, small: str, large: str) -> str:
        with Image.open(source) as picture:
            if max(picture.size) <= _SMALL:
                picture.save(self._folder / small)
                return small
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            picture.convert("RGB").save(self._folder / large, quality=85)
            return large


def _digests(known: Path) -> dict[str, str]:
    """What the last gallery wrote down; nothing when that cannot be read."""
    try:
        found = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

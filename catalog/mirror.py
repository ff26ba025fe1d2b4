"""A store that several machines share, at a URL; the one door to fsspec.

A machine works in a folder of its own. What is there and not here is fetched before it is needed, and what was made
here is sent afterwards, under the same name. The record that makes a result of files comes last on both ways: what it
does not name is no result.
"""

import errno
import json
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from catalog.errors import CatalogueError

_PICTURES = "previews.json"
_FETCHED_AT_ONCE = 16
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Pictures:
    """The record of a folder of pictures: the file of each prompt and seed, and how all of them are drawn."""

    drawing: object = None
    files: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def after(self, earlier: "_Pictures") -> "_Pictures":
        """Together with the pictures of an earlier record, if those are drawn alike."""
        return _Pictures(self.drawing, {**earlier.files, **self.files}) if earlier.drawing == self.drawing else self

    def to_json(self) -> str:
        pictures = [{"file": file, "prompt": prompt, "seed": seed} for (prompt, seed), file in self.files.items()]
        return json.dumps({"pictures": pictures, "drawing": self.drawing}, indent=1, ensure_ascii=False)


def _parse(record: str | bytes) -> _Pictures:
    """The pictures that a record names; none if it is no record."""
    try:
        facts = json.loads(record)
        files = {(one["prompt"], one["seed"]): one["file"] for one in facts["pictures"]}
        return _Pictures(facts["drawing"], {key: file for key, file in files.items() if Path(file).name == file})
    except (ValueError, KeyError, TypeError):
        return _Pictures()


class Mirror:
    """The store at a URL, and the folder on this disk whose files have the same names."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._files: Any
        try:
            # Other machines write there too, so nothing that was listed once is remembered.
            self._files, root = url_to_fs(url, use_listings_cache=False)
        except Exception as error:
            said = str(error).rstrip(".")
            sentence = f"{url} does not open ({said}). Is the address right, and its package installed?"
            raise CatalogueError("STORE_URL", sentence) from error
        self._root = root.rstrip("/")

    def check(self) -> None:
        """Write a file there, read it and remove it; what does not go is an error."""
        probe = self._folder / f".probe-{secrets.token_hex(4)}"
        try:
            probe.write_bytes(b"ziplora")
            self.replace(probe)
            self._get(probe)
            with self._plainly():
                self._files.rm_file(self._name(probe))
        finally:
            probe.unlink(missing_ok=True)

    def fetch(self, *files: Path) -> None:
        """Bring a result here that is not here: its files, the last one of which is its record."""
        if files and not files[-1].is_file() and self.is_there(files[-1]):
            for file in files:
                self._get(file)

    def fetch_all(self, pattern: str) -> None:
        """Bring all records here whose names match, those that are here too: another machine may have changed them."""
        with self._plainly():
            names = self._files.glob(f"{self._root}/{pattern}")
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as threads:
            list(threads.map(self._get, [self._folder / name.removeprefix(f"{self._root}/") for name in names]))

    def send(self, *files: Path) -> None:
        """Put a result there that is not there: its files, the last one of which is its record."""
        if files and files[-1].is_file() and not self.is_there(files[-1]):
            for file in files:
                if file.is_file():
                    self.replace(file)

    def fetch_pictures(self, folder: Path, wanted: Collection[tuple[str, int]] | None = None) -> None:
        """Bring pictures of a folder here that are not here: those of the wanted prompts and seeds, or all."""
        here = _pictures_in(folder)
        if wanted is not None and all(key in here.files and (folder / here.files[key]).is_file() for key in wanted):
            return
        there = self._pictures(folder)
        if not there.files:
            return
        known = there.after(here)
        missing = [
            folder / file
            for key, file in known.files.items()
            if (wanted is None or key in wanted) and not (folder / file).is_file()
        ]
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as threads:
            list(threads.map(self._get, missing))
        if known != here:
            _write(folder, known)

    def send_pictures(self, folder: Path) -> None:
        """Put pictures of a folder there that are not there.

        Of two machines that do this in the same moment, one may lose its entries in the record: those pictures are
        drawn again when they are wanted.
        """
        here, there = _pictures_in(folder), self._pictures(folder)
        new = [folder / file for key, file in here.files.items() if there.files.get(key) != file]
        new = [file for file in new if file.is_file()]
        if new:
            for file in new:
                self.replace(file)
            _write(folder, here.after(self._pictures(folder)))
            self.replace(folder / _PICTURES)

    def remove(self, *places: Path) -> None:
        """Remove files or whole folders there; nothing happens if they are not."""
        for place in places:
            with self._plainly(), suppress(FileNotFoundError):
                self._files.rm(self._name(place), recursive=True)

    def replace(self, file: Path) -> None:
        """Put a file there, whole or not at all, in the place of the one that is there."""
        name = self._name(file)
        with self._plainly():
            if isinstance(self._files, LocalFileSystem):
                with replacing(Path(name)) as unfinished:
                    self._files.put_file(str(file), str(unfinished))
            else:  # the others show no file before it is whole
                self._files.put_file(str(file), name)

    def _get(self, file: Path) -> None:
        """Bring a file here if it is there."""
        with self._plainly(), suppress(FileNotFoundError), replacing(file) as unfinished:
            self._files.get_file(self._name(file), str(unfinished))

    def _pictures(self, folder: Path) -> _Pictures:
        with self._plainly(), suppress(FileNotFoundError):
            return _parse(self._files.cat_file(self._name(folder / _PICTURES)))
        return _Pictures()

    def is_there(self, file: Path) -> bool:
        """Whether a file of this name is at the URL."""
        with self._plainly():
            return bool(self._files.exists(self._name(file)))

    def _name(self, file: Path) -> str:
        return f"{self._root}/{file.relative_to(self._folder).as_posix()}"

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Every file system has errors of its own; only that of a full disk means the same everywhere."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(".")
            sentence = f"{self._url} cannot be read or written ({said}). Is it there, and are you allowed to?"
            raise CatalogueError("STORE_UNREACHABLE", sentence) from error


def _pictures_in(folder: Path) -> _Pictures:
    with suppress(FileNotFoundError):
        return _parse((folder / _PICTURES).read_bytes())
    return _Pictures()


def _write(folder: Path, pictures: _Pictures) -> None:
    with replacing(folder / _PICTURES) as unfinished:
        unfinished.write_text(pictures.to_json(), encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary name beside a file, renamed to it when all went well, and gone when not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{secrets.token_hex(4)}-{file.name}")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)

"""Repository folders on disk as a source: weights, and maybe a card and pictures, as a clone from the Hub has."""

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from catalog.candidate import Candidate, CardFacts, Unfit, choose_weights
from catalog.card import MAX_CARD_BYTES, read_card
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason

LOCAL = "local"
"""The revision of what lies in a folder."""


def scan_folder(folder: Path, names: Sequence[str] = ("*",)) -> Iterator[Candidate | Unfit]:
    """The weights of every repository folder whose name matches one of the patterns, in the order of their names."""
    if not folder.is_dir():
        raise CatalogueError("FOLDER_MISSING", f"There is no folder {folder}: name one that holds repository folders.")
    for repository in sorted(folder.iterdir()):
        wanted = any(fnmatchcase(repository.name, pattern) for pattern in names)
        if repository.is_dir() and wanted and not repository.name.startswith("."):
            yield read_repository(repository)


def read_repository(repository: Path, file_name: str | None = None) -> Candidate | Unfit:
    """The weights of one repository folder; `file_name` says which where it holds several."""
    siblings = tuple(
        path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file()
    )
    chosen = choose_weights(siblings, file_name)
    if isinstance(chosen, Reason):
        return Unfit(repository.name, LOCAL, file_name or "", chosen)
    weights = repository / chosen
    return Candidate(
        repository=repository.name,
        revision=LOCAL,
        file_name=chosen,
        size_bytes=weights.stat().st_size,
        sha256=sha256_of(weights),
        card=_card(repository, siblings),
        siblings=siblings,
        folder=repository,
    )


def _card(repository: Path, siblings: tuple[str, ...]) -> CardFacts:
    if "README.md" not in siblings:
        return CardFacts()
    with (repository / "README.md").open("rb") as file:
        return read_card(file.read(MAX_CARD_BYTES + 1), siblings)


def sha256_of(path: Path) -> str:
    """The content's name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(candidate: Candidate, adapters: Path) -> Path:
    """A candidate's file as `adapters`/<sha256>.safetensors, or Refused when it changed since it was found."""
    assert candidate.folder is not None
    target = adapters / f"{candidate.sha256}.safetensors"
    if target.is_file():
        return target
    adapters.mkdir(parents=True, exist_ok=True)
    unfinished = adapters / f".{secrets.token_hex(4)}.part"
    try:
        shutil.copyfile(candidate.folder / candidate.file_name, unfinished)
        found = sha256_of(unfinished)
        if found != candidate.sha256:
            fact = f"The file was {candidate.sha256} when it was found, and is {found} now."
            raise Refused(Reason("SOURCE_CHANGED", fact, "run again."))
        return unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)

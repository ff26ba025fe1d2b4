"""What a source offers, a folder and the Hub alike: one weights file of a repository, and what its card says."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from catalog.facts import Reason

CANONICAL_FILE = "pytorch_lora_weights.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_WEIGHTS = ("optimizer.safetensors", "scheduler.safetensors")
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """A picture in the repository that the card shows."""

    path: str
    """Inside the repository."""
    prompt: str


@dataclass(frozen=True)
class CardFacts:
    """What a card claims; any of it may be missing or wrong."""

    base_models: tuple[str, ...] = ()
    licence: str | None = None
    """A Hub licence id in lower case; None when the card names none."""
    instance_prompts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[Reason, ...] = ()
    """What was wrong with the card: never a reason to refuse the weights."""


@dataclass(frozen=True)
class Candidate:
    """A LoRA file that may be used, before anybody looked inside."""

    repository: str
    revision: str
    """A commit of the Hub, or `local`."""
    file_name: str
    size_bytes: int | None
    """None until the file's start was read, on the Hub; the same for the hash."""
    sha256: str | None
    card: CardFacts
    siblings: tuple[str, ...]
    """Every file of the repository."""
    gated: bool = False
    modified_at: datetime | None = None
    folder: Path | None = None
    """Where the repository lies on this disk, if it does."""

    @property
    def sample_paths(self) -> tuple[Path, ...]:
        """The card's pictures that are on this disk."""
        return tuple(self.folder / sample.path for sample in self.card.samples) if self.folder else ()


@dataclass(frozen=True)
class Unfit:
    """A repository that offers nothing to use, and why."""

    repository: str
    revision: str
    file_name: str
    """Empty when no one file is meant."""
    reason: Reason


def choose_weights(names: Collection[str], wanted: str | None = None) -> str | Reason:
    """The one weights file among a repository's files, or why there is not one; nothing is guessed.

    It is the file asked for, else the name that diffusers writes, else the only safetensors file: of the top folder,
    or of all where that has none.
    """
    if wanted is not None:
        if wanted.lower().endswith(_PICKLES):
            return _pickles([wanted])
        if wanted not in names:
            return Reason("FILE_MISSING", f"There is no file {wanted!a}.", "name one of the repository's files.")
        return wanted if _is_safe(wanted) else _unsafe([wanted])
    if CANONICAL_FILE in names:
        return CANONICAL_FILE
    weights = sorted(
        name
        for name in names
        if name.lower().endswith(".safetensors") and PurePosixPath(name).name.lower() not in _NO_WEIGHTS
    )
    unsafe = [name for name in weights if not _is_safe(name)]
    if unsafe:
        return _unsafe(unsafe)
    found = [name for name in weights if "/" not in name] or weights
    if len(found) == 1:
        return found[0]
    if found:
        fact = f"It holds {len(found)} safetensors files: {_listed(found)}."
        return Reason("AMBIGUOUS_FILE", fact, "name one of them as the source's file.")
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    if pickles:
        return _pickles(pickles)
    return Reason("NO_WEIGHTS", "It holds no safetensors file.", "check that the repository is the right one.")


def _is_safe(name: str) -> bool:
    """Whether a name stays inside its repository on every system, and prints as what it is."""
    steps = name.split("/")
    plain = all(step not in ("", ".", "..") and len(step.encode()) <= 255 for step in steps)
    return plain and name.isprintable() and not set(name) & set('\\:*?"<>|')


def _unsafe(names: list[str]) -> Reason:
    fact = f"The name of its weights could lead out of the repository or hide what it is: {_listed(names)}."
    return Reason("UNSAFE_NAME", fact, "ask the author to rename the file.")


def _pickles(names: list[str]) -> Reason:
    fact = f"It holds its weights as a pickle, which can run code when opened: {_listed(names)}; it was not opened."
    return Reason("PICKLE_REFUSED", fact, "ask the author for a safetensors file.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(ascii(name[:120]) for name in names[:_NAMES_SHOWN]) + more

"""What is published of a merge: ready files, and the facts that go with them."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.facts import Role, ScoreSummary
from catalog.names import page_of

WEIGHTS, COEFFICIENTS = "pytorch_lora_weights.safetensors", "coefficients.safetensors"
CARD, PROVENANCE = "README.md", "provenance.json"
_LONGEST_NAME = 96


@dataclass(frozen=True)
class Parent:
    """One of the two adapters."""

    role: Role
    name: str
    """What people call it."""
    repository: str
    revision: str
    file_name: str
    sha256: str
    licence: str | None
    prompt: str
    """Its own trigger prompt."""

    @property
    def url(self) -> str | None:
        """Its page at the commit; None for a folder on somebody's disk."""
        return page_of(self.repository, self.revision)


@dataclass(frozen=True)
class ReleasePicture:
    """A preview."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Release:
    """A merge, ready to be published."""

    merge_id: str
    subject: Parent
    style: Parent
    base_model: str
    base_revision: str
    method: str
    recipe: Mapping[str, Any]
    licence: str | None
    prompt: str
    """Calls the merge up."""
    score_01: float | None
    scores: tuple[ScoreSummary, ...]
    pictures: tuple[ReleasePicture, ...]
    weights: Path
    """For diffusers."""
    kohya: Path
    """The same weights for kohya and ComfyUI."""
    coefficients: Path
    builder: Mapping[str, str]
    """Names and versions of what made it."""

    @property
    def name(self) -> str:
        """Of the repository and of the kohya file: readable, and no two merges share one."""
        words = "-".join(slug(word) for word in (self.subject.name, self.style.name, self.method))
        return f"{words[: _LONGEST_NAME - 9].strip('-.')}-{self.merge_id[:8]}"

    @property
    def tag(self) -> str:
        """Names the published commit for ever."""
        return tag_of(self.merge_id)

    @property
    def weight_files(self) -> dict[str, Path]:
        """The published tensors, by path in the repository."""
        return {WEIGHTS: self.weights, f"kohya/{self.name}.safetensors": self.kohya, COEFFICIENTS: self.coefficients}

    @property
    def picture_files(self) -> dict[str, Path]:
        """The published previews, by path in the repository."""
        return {f"images/{number:04}.png": picture.path for number, picture in enumerate(self.pictures)}


def tag_of(merge_id: str) -> str:
    """What the commit that published a merge is called."""
    return f"merge-{merge_id[:12]}"


def slug(word: str) -> str:
    """A stranger's word as part of a name on the Hub."""
    kept = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
    return kept[:36].strip("-") or hashlib.sha256(word.encode()).hexdigest()[:8]

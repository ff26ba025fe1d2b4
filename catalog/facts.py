"""The frozen facts that go into a catalogue, with the keys made from their content."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any, Literal, Self, get_args

Role = Literal["subject", "style"]
AdapterStatus = Literal["usable", "unsupported", "rejected", "restricted", "gone"]
MergeStatus = Literal["planned", "running", "done", "failed", "blocked", "skipped"]
PublicationStatus = Literal["staged", "committed", "verified", "withdrawn"]
PUBLICATION_ORDER: tuple[PublicationStatus, ...] = get_args(PublicationStatus)
"""A publication goes from left to right, never back."""

TombstoneKind = Literal["repository", "adapter"]

FAILURES_TO_BLOCK = 3

SUBJECT_METRIC, STYLE_METRIC, TEXT_METRIC = "dino", "clip-i", "clip-t"
"""What a picture is held against: the subject's pictures, the style's, its prompt. The first two make a ranking."""


def metric_of(scorer_id: str) -> str:
    """The metric that a scorer's id begins with."""
    return scorer_id.partition(":")[0]


def key(*parts: str | int) -> str:
    """The key of what these parts name together: as JSON first, so that no two lists of parts run into one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Adapter:
    """A LoRA file: its sha256, and what its header and card say."""

    sha256: str
    role: Role
    status: AdapterStatus
    licence: str | None
    facts: Mapping[str, Any]
    seen_at: datetime


@dataclass(frozen=True)
class Alias:
    """Where an adapter was seen: a label for people."""

    repository: str
    revision: str
    file_name: str
    sha256: str
    seen_at: datetime

    @property
    def alias_id(self) -> str:
        return key(self.repository, self.revision, self.file_name)


@dataclass(frozen=True)
class Reason:
    """Why something did not happen: a stable code, the observed fact in one sentence, what to do next."""

    code: str
    fact: str
    next_step: str


TAKEN_DOWN = Reason("TAKEN_DOWN", "It was taken down.", "nothing: ziplora why tells when, and what for.")


@dataclass(frozen=True)
class Header:
    """What a file of the Hub says about itself at a commit, which never changes: its facts, or why it is refused."""

    repository: str
    revision: str
    file_name: str
    sha256: str
    facts: Mapping[str, Any] | None
    reason: Reason | None
    reader: int
    """Which reader understood it so; a later one reads the file again."""
    read_at: datetime

    @property
    def alias_id(self) -> str:
        return key(self.repository, self.revision, self.file_name)


@dataclass(frozen=True)
class Refusal:
    """A file that a night would not take. A damaged file may have no adapter."""

    night_id: str
    repository: str
    revision: str
    file_name: str
    reason: Reason
    refused_at: datetime
    sha256: str | None = None

    @property
    def refusal_id(self) -> str:
        return key(self.night_id, self.repository, self.revision, self.file_name, self.reason.code)


@dataclass(frozen=True)
class Merge:
    """A recipe and its hash; subject and style are the sha256 of their adapters."""

    merge_id: str
    subject: str
    style: str
    method: str
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a finished merge measured."""

    night_id: str
    losses: Mapping[str, Any]
    """With the movement of each block of the UNet."""
    movement: float
    seconds: float
    """Of merging alone."""
    finished_at: datetime
    pair_seconds: float | None = None
    """With pictures and scores."""


@dataclass(frozen=True)
class Score:
    """One picture of a merge, seen by one scorer, between the base alone (floor) and one LoRA alone (ceiling)."""

    merge_id: str
    scorer_id: str
    prompt: str
    seed: int
    value: float | None
    floor: float | None
    ceiling: float | None
    scored_at: datetime

    @property
    def score_id(self) -> str:
        return key(self.merge_id, self.scorer_id, self.prompt, self.seed)

    @property
    def unranked_because(self) -> str | None:
        """The fact that keeps the score out of every ranking, or None."""
        for name, number in (("value", self.value), ("floor", self.floor), ("ceiling", self.ceiling)):
            if number is None:
                return f"The {name} is missing."
            if not math.isfinite(number):
                return f"The {name} is {number}."
        if self.floor is not None and self.ceiling is not None and self.ceiling <= self.floor:
            return f"The ceiling {self.ceiling:g} is not above the floor {self.floor:g}."
        return None

    @property
    def position(self) -> float | None:
        """0 at the floor, 1 at the ceiling, and beyond."""
        if self.unranked_because or self.value is None or self.floor is None or self.ceiling is None:
            return None
        return (self.value - self.floor) / (self.ceiling - self.floor)


@dataclass(frozen=True)
class Tombstone:
    """A repository, or a file by its sha256, that is never taken up again."""

    kind: TombstoneKind
    name: str
    why: str
    """In the words of whoever took it down."""
    buried_at: datetime

    @property
    def tombstone_id(self) -> str:
        return key(self.kind, self.name.casefold())


@dataclass(frozen=True)
class Batch:
    """Merges that one process was given together in a night, and how it ended."""

    night_id: str
    number: int
    merges: int
    """How many it was given; a later batch has those that it left."""
    started_at: datetime | None
    """None: no worker took it."""
    ended_at: datetime
    ended: str
    """`Completed`, or what became of its process."""


@dataclass(frozen=True)
class ScoreSummary:
    """What one scorer saw in all pictures of a merge, as means."""

    scorer_id: str
    pictures: int
    value: float | None
    floor: float | None
    ceiling: float | None
    position: float | None
    """None unless every picture has one."""
    reason: str | None
    """Why there is no position."""
    scored_at: datetime

    @property
    def metric(self) -> str:
        return metric_of(self.scorer_id)

    @classmethod
    def of(cls, scores: Collection[Score]) -> Self:
        """The summary of all that one scorer saw of one merge."""
        reasons = [score.unranked_because for score in scores if score.unranked_because]
        return cls(
            scorer_id=next(iter(scores)).scorer_id,
            pictures=len(scores),
            value=_mean(score.value for score in scores),
            floor=_mean(score.floor for score in scores),
            ceiling=_mean(score.ceiling for score in scores),
            position=None if reasons else _mean(score.position for score in scores),
            reason=max(reasons, default=None),
            scored_at=max(score.scored_at for score in scores),
        )


def _mean(numbers: Iterable[float | None]) -> float | None:
    """Of those that are numbers."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    return fmean(known) if known else None


def harmonic_01(subject: float, style: float) -> float:
    """The harmonic mean of two positions, each cut to 0 … 1."""
    subject, style = min(1.0, max(0.0, subject)), min(1.0, max(0.0, style))
    return 2 * subject * style / (subject + style) if subject and style else 0.0


@dataclass(frozen=True)
class Publication:
    """How far a merge has come on its way to one repository of the Hub."""

    merge_id: str
    repository: str
    status: PublicationStatus
    commit: str | None
    changed_at: datetime
    folder: str = ""
    """In a collection of many merges; empty in a repository of its own."""

    @property
    def publication_id(self) -> str:
        return key(self.merge_id, self.repository)

"""The frozen facts that the stages exchange, and their ids.

What changes a result is in its id; what does not, such as device, folder or how many pictures are drawn at once, is
not. Standard library only: whoever plans or reads results needs no torch.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from .failure import Failure

Role = Literal["subject", "style"]
Parameter = bool | int | float | str

RECIPE_VERSION = 1
"""Raised whenever the same recipe would give another result."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(facts: object) -> str:
    """One text for equal facts, whatever the order of their keys."""
    return _CANONICAL.encode(facts)


def content_id(facts: object) -> str:
    """The sha256 of the facts."""
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_revision(folder: Path) -> str:
    """The sha256 of a folder's file names and contents: the revision of a base model that lies on this disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return content_id({path.relative_to(folder).as_posix(): sha256_of(path) for path in files})


@dataclass(frozen=True)
class References:
    """Pictures of what an adapter stands for: its repository's own samples, or drawn by the LoRA alone."""

    paths: tuple[Path, ...]
    kind: Literal["samples", "drawn"]

    @property
    def sha256(self) -> str:
        """Of the pictures' files, in order."""
        return content_id([sha256_of(path) for path in self.paths])


@dataclass(frozen=True)
class Calibration:
    """Which noisy latents and teacher targets of one adapter: all that its cached file depends on."""

    adapter_sha256: str
    base_model: str
    base_revision: str
    prompt: str
    references_sha256: str | None
    """None: the latents come from pictures that the LoRA alone draws of its prompt."""
    samples: int = 16
    """How many noisy latents, each with its own timestep and noise."""
    seed: int = 0
    side: int = 1024
    """Width and height of the pictures, in pixels."""
    pictures: int = 8
    """How many pictures are drawn when there are no references; without effect otherwise, as the next two."""
    steps: int = 20
    guidance: float = 5.0

    @cached_property
    def calibration_id(self) -> str:
        facts = asdict(self)
        if self.references_sha256 is not None:
            for name in ("pictures", "steps", "guidance"):
                del facts[name]
        return content_id({"version": RECIPE_VERSION, **facts})


@dataclass(frozen=True)
class JointCalibration:
    """Which joint prompts a merge is fitted to: all that its joint targets depend on, besides the pair and the base."""

    prompts: tuple[str, ...]
    """Subject and style together, in several surroundings: coefficients fitted to one prompt fit others badly."""
    pictures: int = 2
    """How many are drawn of each prompt for noisy latents to come from."""
    samples: int = 16
    """How many noisy latents of each prompt, each with its own timestep and noise."""
    seed: int = 0
    side: int = 1024
    """Width and height of the pictures, in pixels."""
    steps: int = 20
    guidance: float = 5.0
    subject_weight: float = 1.3
    """How much of the subject's effect goes into the sum of both: at 1 the style's prevails."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a merge."""

    subject_sha256: str
    style_sha256: str
    base_model: str
    base_revision: str
    method: str
    parameters: Mapping[str, Parameter]
    """All parameters of the method, defaults included, so that a new default is another recipe."""
    subject_calibration: Calibration | None
    style_calibration: Calibration | None
    """None when the method needs none."""
    joint: JointCalibration | None = None
    seed: int = 0
    version: int = RECIPE_VERSION

    @cached_property
    def merge_id(self) -> str:
        return content_id(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The facts that make the merge id, each calibration by its own id."""
        calibrations = {
            name: calibration.calibration_id if calibration else None
            for name, calibration in (("subject", self.subject_calibration), ("style", self.style_calibration))
        }
        facts = {field.name: getattr(self, field.name) for field in fields(self) if "calibration" not in field.name}
        if self.joint is None:
            del facts["joint"]  # so that merges from before there was any keep their ids
        else:
            facts["joint"] = vars(self.joint)
        return {**facts, "calibrations": calibrations}

    def to_json(self) -> str:
        """The recipe as canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote."""
        facts = json.loads(text)
        for name in ("subject_calibration", "style_calibration"):
            facts[name] = Calibration(**facts[name]) if facts[name] else None
        if facts.get("joint"):
            facts["joint"] = JointCalibration(**{**facts["joint"], "prompts": tuple(facts["joint"]["prompts"])})
        return cls(**facts)


class MergeIds:
    """The merge ids of recipes that differ from one of them in nothing but their style: a million pairs have theirs so.

    What they share is written once. Where a pair's style will be in the one's joint prompts, PLACE is; nothing else in
    it holds MARK.
    """

    MARK = "\ue000"  # means nothing, and is the same in JSON
    PLACE = f"{MARK}prompt{MARK}"

    def __init__(self, one: Recipe) -> None:
        facts = one.identity | {"style_sha256": f"{self.MARK}style{self.MARK}"}
        if one.style_calibration:
            facts["calibrations"] |= {"style": f"{self.MARK}calibration{self.MARK}"}
        self._text = re.sub(f"{self.MARK}(.+?){self.MARK}", r"%(\1)s", canonical_json(facts).replace("%", "%%"))

    @staticmethod
    def of_style(style: Calibration, prompt: str) -> Mapping[str, str]:
        """What the ids of a style's merges are made with; `prompt` is what stands for it in joint prompts."""
        said = canonical_json(prompt)[1:-1]
        return {"style": style.adapter_sha256, "calibration": style.calibration_id, "prompt": said}

    def of(self, style: Mapping[str, str]) -> str:
        """The id of the merge with a style, given what `of_style` says of it."""
        return hashlib.sha256((self._text % style).encode()).hexdigest()


@dataclass(frozen=True)
class Export:
    """The form of an adapter file."""

    dialect: Literal["diffusers", "kohya"] = "diffusers"
    """kohya's form is what ComfyUI and kohya's own tools read; the blocks have diffusers' numbers in both."""
    precision: Literal["float16", "float32"] = "float16"
    style_strength: float = 1.0
    """The paper's w_s: 0 leaves nothing but the subject's part, 1 is the merge as it was learned."""
    rank: int | None = None
    """The most that a layer may have; None leaves subject and style apart, each at its own rank.

    A layer that had to be cut holds both at once, so the style's strength comes before and is fixed from then on.
    """

    def __post_init__(self) -> None:
        if not math.isfinite(self.style_strength):
            fact = f"A style strength of {self.style_strength} is not a finite number."
            raise Failure("EXPORT_INVALID", fact, "1 is the merge as it was learned, 0 is without the style.")
        if self.rank is not None and self.rank < 1:
            fact = f"A file of rank {self.rank} holds nothing."
            raise Failure("EXPORT_INVALID", fact, "ask for a rank of at least 1, or for none to lose nothing.")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    sha256: str
    size_bytes: int
    rank: int
    """Of the largest layer in the file."""
    rank_error: float | None
    """‖merge − file‖ / ‖merge‖ in Frobenius norm over all layers, numbers not yet rounded; None if no layer was cut."""


@dataclass(frozen=True)
class Losses:
    """How far the merged model is from each LoRA's own predictions, over all calibration samples.

    Relative to what that LoRA changes: 0 is the LoRA reproduced, 1 as far from it as the base alone.
    """

    first_subject: float
    """Of the direct merge, wherever a method starts."""
    first_style: float
    last_subject: float
    last_style: float
    curve: tuple[tuple[float, ...], ...]
    """(step, terms of the objective) of some steps, as the optimiser saw them on its few samples; empty without.

    The terms of `ziplora` are subject, style and third term, that of `ziplora-joint` is the joint error.
    """
    first_joint: float | None = None
    """Distance from the sum of both adapters' effects on joint prompts, relative to that sum."""
    last_joint: float | None = None


@dataclass(frozen=True)
class MergeResult:
    """What a finished merge measured."""

    merge_id: str
    losses: Losses | None
    """None for a method without calibration."""
    movement: float
    """max |m − 1| over the coefficients, or NP-LoRA's k, or the share of numbers that TIES or DARE leaves out."""
    subject_mean: float
    style_mean: float
    """Means of the two coefficient vectors: both well below 1 is a merge on its way back to the base."""
    merged: int
    """Attention layers that both adapters have: the paper's layers."""
    passed_through: int
    """Other UNet layers, taken over as the direct sum."""
    left_out: tuple[str, ...]
    """Layers of text encoders, which no merge holds, as `role part.path`."""
    rank: int
    """Of the largest merged layer."""
    seconds: float
    peak_memory_bytes: int
    """Of the GPU during the merge; on a CPU, of the process since it started."""
    device: str
    dtype: str
    versions: Mapping[str, str]
    coefficients_sha256: str
    """Of the file beside this record."""
    rank_error: float | None = None
    """What `rank` cannot hold of a merge by TIES or DARE, a relative Frobenius error over the layers of `merged`.

    None where the merge has that rank exactly.
    """
    movement_by_block: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean |m − 1| of subject and style in each block of the UNet; empty where no coefficient was learned."""

    def to_json(self) -> str:
        """The result as JSON."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The result that `to_json` wrote."""
        facts: dict[str, Any] = json.loads(text)
        if facts["losses"]:
            curve = tuple(tuple(point) for point in facts["losses"].pop("curve"))
            facts["losses"] = Losses(**facts["losses"], curve=curve)
        blocks = {block: tuple(moved) for block, moved in facts.get("movement_by_block", {}).items()}
        return cls(**{**facts, "left_out": tuple(facts["left_out"]), "movement_by_block": blocks})


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    steps: int = 30
    guidance: float = 5.0
    side: int = 1024
    """Width and height, in pixels."""


@dataclass(frozen=True)
class PreviewRequest:
    """Every prompt with every seed."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    drawing: Drawing

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """Prompts and seeds, picture by picture."""
        return [(prompt, seed) for prompt in dict.fromkeys(self.prompts) for seed in dict.fromkeys(self.seeds)]


@dataclass(frozen=True)
class Single:
    """One LoRA alone, or the base alone (None): a folder of pictures that all pairs share."""

    adapter_sha256: str | None
    base_model: str
    base_revision: str
    drawing: Drawing

    @property
    def single_id(self) -> str:
        return content_id({"version": RECIPE_VERSION, **asdict(self)})


@dataclass(frozen=True)
class Picture:
    """One drawn picture."""

    file: str
    """Name inside its folder."""
    prompt: str
    seed: int


@dataclass(frozen=True)
class PreviewResult:
    """The pictures that were asked for, in their order, and a sheet of all that the folder holds."""

    folder: Path
    sheet: Path
    pictures: tuple[Picture, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the pictures lie."""
        return tuple(self.folder / picture.file for picture in self.pictures)


@dataclass(frozen=True)
class ScoreRow:
    """One picture of a merge as one scorer sees it.

    Floor is the mean over the base's pictures of the same prompts, ceiling the mean over the pictures that a LoRA
    alone makes of its own prompts: the same in all rows of one merge and scorer.
    """

    scorer_id: str
    prompt: str
    seed: int
    value: float
    floor: float
    ceiling: float
    references_sha256: str | None
    """The pictures it was compared with; None where it was compared with a text."""
    evidence_sha256: str
    """All pictures that value, floor and ceiling were computed from."""

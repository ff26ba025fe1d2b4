"""What one setting of a method does to pairs of the tiny world: merged, drawn, scored and judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from ziplora.backbone import Sdxl, load_backbone
from ziplora.failure import Failure
from ziplora.merge import merge
from ziplora.methods import recipe_for
from ziplora.preview import preview_merge, preview_single
from ziplora.recipe import (
    Calibration,
    Drawing,
    JointCalibration,
    Parameter,
    PreviewRequest,
    PreviewResult,
    Recipe,
    References,
    ScoreRow,
    Single,
    folder_revision,
    sha256_of,
)
from ziplora.score import Evidence, Metric, Scorer, ScorerSpec, harmonic_mean, load_scorer, position, score_merge
from ziplora.store import Store

from .adapters import PLANS, AdapterPlan, instance_caption
from .base import GUIDANCE
from .bundle import load_judge
from .dataset import Pictures
from .figures import BACKGROUNDS
from .judge import Judge, judge_pictures
from .measure import joint_prompt
from .world import SIZE, Scene

REFERENCE_SEEDS = (1000, 1001, 1002, 1003)
_BASE = "tinyworld"
_DRAWING = Drawing(steps=20, guidance=GUIDANCE, side=SIZE)
SHOWN_BACKGROUNDS = ("black", "mint", "sand")
"""What merges are judged on; what they are fitted to has none, or one of the others."""
_UNRELATED = ("a red star on a mint background in dots style", "a blue moon on a white background in flat style")
"""Prompts without subject and style: what a merge draws of them should be what the base draws."""
_LEAST_ROOM = 0.1
"""Between floor and ceiling, in cosine."""
_ENCODERS: tuple[tuple[Metric, str], ...] = (("clip-t", "clip"), ("clip-i", "style"), ("dino", "subject"))


@dataclass(frozen=True)
class Entry:
    """One adapter of the tiny world."""

    plan: AdapterPlan
    file: Path
    references: References

    @property
    def own_prompts(self) -> list[str]:
        """What it is asked for alone: a subject on the backgrounds of the merges, a style by its trigger prompt."""
        if self.plan.role == "style":
            return [self.plan.trigger_prompt]
        scenes = [Scene(self.plan.name, None, background, "flat") for background in SHOWN_BACKGROUNDS]
        return [instance_caption(self.plan, scene) for scene in scenes]

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.file)


@dataclass(frozen=True)
class Pair:
    """A subject and a style."""

    subject: Entry
    style: Entry

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.subject.plan.name} × {self.style.plan.name}"

    @property
    def joint_prompts(self) -> list[str]:
        """The subject in the style, on one background after the other."""
        return [joint_prompt(self.subject.plan, self.style.plan, background) for background in SHOWN_BACKGROUNDS]

    @property
    def joint_calibration(self) -> JointCalibration:
        """The subject in the style without surroundings, and on the backgrounds that no picture is judged on."""
        subject, style = self.subject.plan, self.style.plan
        backgrounds = [name for name in BACKGROUNDS if name not in SHOWN_BACKGROUNDS]
        prompts = [f"{subject.trigger_prompt} in {style.name} style"]
        prompts += [joint_prompt(subject, style, background) for background in backgrounds]
        return JointCalibration(tuple(prompts), side=SIZE, guidance=GUIDANCE)


@dataclass(frozen=True)
class Placed:
    """A mean score with what the base alone and one LoRA alone reach."""

    value: float
    floor: float
    ceiling: float

    @property
    def has_room(self) -> bool:
        """Whether floor and ceiling are far enough apart for a place between them to mean anything."""
        return self.ceiling - self.floor >= _LEAST_ROOM

    @property
    def position(self) -> float:
        """0 at the floor, 1 at the ceiling."""
        return position(self.value, self.floor, self.ceiling)


@dataclass(frozen=True)
class Outcome:
    """What one method did to one pair."""

    pair: str
    subject: Placed
    style: Placed
    text: Placed
    judged_subject: float
    """Share of pictures in which the judge names the subject."""
    judged_style: float
    judged_both: float
    drift: float
    """1 − cosine, in CLIP's eyes, between what merge and base draw of unrelated prompts."""
    errors: tuple[float, float] | None
    """Distance from subject's and style's own predictions; 1 is as far as the base alone."""
    seconds: float

    @property
    def is_placed(self) -> bool:
        """Whether its harmonic mean counts: it is no method's doing where the base alone scores like the adapter."""
        return self.subject.has_room and self.style.has_room

    @property
    def harmonic(self) -> float:
        """Of the positions of subject and style."""
        return harmonic_mean(self.subject.position, self.style.position)


@dataclass(frozen=True)
class Trial:
    """One setting of a method, with all its outcomes; empty when it is no merge at all."""

    method: str
    parameters: Mapping[str, Parameter]
    """As they were given: the method's own defaults are not among them."""
    outcomes: tuple[Outcome, ...]
    failure: str | None

    @property
    def harmonic(self) -> float:
        """Mean over the pairs that can be placed; a setting that fails is worth nothing."""
        placed = [outcome.harmonic for outcome in self.outcomes if outcome.is_placed]
        return float(np.mean(placed)) if placed else 0.0


class World:
    """Base, encoders, judge and adapters of the tiny world, with a store of results."""

    def __init__(self, files: Path, work: Path) -> None:
        self.store = Store(work)
        self.backbone: Sdxl = load_backbone(files / "base", "cpu", "float32")
        self.judge: Judge = load_judge(files / "judge", self.backbone.device)
        self.base_revision = folder_revision(files / "base")
        self.scorers: dict[Metric, Scorer] = {
            metric: load_scorer(ScorerSpec(metric, encoder, files / "encoders" / encoder))
            for metric, encoder in _ENCODERS
        }
        self.subjects, self.styles = (
            [_entry(files / "adapters" / f"{plan.name}-lora", plan) for plan in PLANS if plan.role == role]
            for role in ("subject", "style")
        )

    def halves(self, count: int) -> tuple[list[Pair], list[Pair]]:
        """The pairs that settings are chosen on, and those that are reported: no adapter is in both."""
        tuning, reported = (
            [Pair(subject, style) for subject in self.subjects[some] for style in self.styles[some]]
            for some in (slice(count), slice(-count, None))
        )
        return tuning, reported

    def alone(self, entry: Entry, seeds: Sequence[int]) -> PreviewResult:
        """What an adapter draws by itself, of its own prompts."""
        single = Single(entry.sha256, _BASE, self.base_revision, _DRAWING)
        return preview_single(single, _request(entry.own_prompts, seeds), entry.file, self.backbone, self.store)

    def by_base(self, prompts: Sequence[str], seeds: Sequence[int]) -> PreviewResult:
        """What the base draws without any adapter."""
        single = Single(None, _BASE, self.base_revision, _DRAWING)
        return preview_single(single, _request(prompts, seeds), None, self.backbone, self.store)

    def by_merge(self, recipe: Recipe, pair: Pair, prompts: Sequence[str], seeds: Sequence[int]) -> PreviewResult:
        """What a finished merge draws."""
        request = _request(prompts, seeds)
        return preview_merge(recipe, request, pair.subject.file, pair.style.file, self.backbone, self.store)

    def outcome(self, pair: Pair, method: str, given: Mapping[str, Parameter], prompts: int, seeds: int) -> Outcome:
        """Merge, draw, score and judge one pair; raises Failure when there is no merge."""
        recipe = self.recipe(pair, method, given)
        subject, style, chosen = pair.subject, pair.style, range(seeds)
        result = merge(
            recipe, subject.file, style.file, self.backbone, self.store, subject.references, style.references
        )
        joint = pair.joint_prompts[:prompts]
        merged = self.by_merge(recipe, pair, joint, chosen)
        evidence = Evidence(
            merged,
            self.by_base(joint, chosen),
            self.alone(subject, REFERENCE_SEEDS),
            self.alone(style, REFERENCE_SEEDS),
            subject.references,
            style.references,
        )
        rows = score_merge(recipe.merge_id, evidence, tuple(self.scorers.values()), self.store)
        verdicts = judge_pictures(self.judge, pixels_of(merged))
        seen = [(verdict.figure == subject.plan.name, verdict.style == style.plan.name) for verdict in verdicts]
        losses = result.losses
        return Outcome(
            pair=pair.name,
            subject=_placed(rows, "dino"),
            style=_placed(rows, "clip-i"),
            text=_placed(rows, "clip-t"),
            judged_subject=float(np.mean([found for found, _ in seen])),
            judged_style=float(np.mean([found for _, found in seen])),
            judged_both=float(np.mean([all(both) for both in seen])),
            drift=self._drift(recipe, pair, chosen[:2]),
            errors=(losses.last_subject, losses.last_style) if losses else None,
            seconds=result.seconds,
        )

    def recipe(self, pair: Pair, method: str, given: Mapping[str, Parameter]) -> Recipe:
        """Of a pair, its calibrations from the adapters' own pictures."""

        def calibration(entry: Entry) -> Calibration:
            prompt, digest = entry.plan.trigger_prompt, entry.references.sha256
            return Calibration(entry.sha256, _BASE, self.base_revision, prompt, digest, side=SIZE)

        return recipe_for(method, given, calibration(pair.subject), calibration(pair.style), pair.joint_calibration)

    def _drift(self, recipe: Recipe, pair: Pair, seeds: Sequence[int]) -> float:
        drawn = (self.by_merge(recipe, pair, _UNRELATED, seeds), self.by_base(_UNRELATED, seeds))
        by_merge, by_base = (self.scorers["clip-t"].embed_pictures(result.paths) for result in drawn)
        return 1 - float((by_merge * by_base).sum(1).mean())

    def trial(
        self, method: str, given: Mapping[str, Parameter], pairs: Sequence[Pair], prompts: int, seeds: int
    ) -> Trial:
        """A setting on all pairs; one that fails on any of them has failed."""
        label = " ".join([method, *(f"{name}={value}" for name, value in given.items())])
        try:
            outcomes = tuple(self.outcome(pair, method, given, prompts, seeds) for pair in track(pairs, label))
        except Failure as error:
            return Trial(method, given, (), error.code)
        return Trial(method, given, outcomes, None)


def _entry(repository: Path, plan: AdapterPlan) -> Entry:
    samples = tuple(sorted((repository / "images").glob("*.png")))
    return Entry(plan, next(repository.glob("*.safetensors")), References(samples, "samples"))


def _request(prompts: Sequence[str], seeds: Sequence[int]) -> PreviewRequest:
    return PreviewRequest(tuple(prompts), tuple(seeds), _DRAWING)


def _placed(rows: Sequence[ScoreRow], metric: str) -> Placed:
    own = [row for row in rows if row.scorer_id.startswith(f"{metric}:")]
    return Placed(float(np.mean([row.value for row in own])), own[0].floor, own[0].ceiling)


def pixels_of(result: PreviewResult) -> Pictures:
    """The pictures as they are kept."""
    pictures = []
    for path in result.paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)

"""Judge every method on every pair of the tiny world: `python -m ziplora.tinyworld.evaluate`.

Settings are chosen on half of the subjects and half of the styles, and what is reported comes from the pairs of the
other halves. Everything lies in a store, so that a run that was stopped goes on where it was.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from ziplora.backbone import Sdxl, load_backbone
from ziplora.failure import Failure
from ziplora.merge import merge
from ziplora.methods import METHODS, complete_parameters
from ziplora.preview import preview_merge, preview_single
from ziplora.recipe import (
    Calibration,
    Drawing,
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
from ziplora.sheet import contact_sheet
from ziplora.store import Store

from .adapters import PLANS, AdapterPlan
from .base import GUIDANCE
from .bundle import FILES, load_judge
from .evaluate_page import evaluation_page
from .figures import BACKGROUNDS
from .judge import Judge, judge_pictures
from .measure import joint_prompt
from .world import SIZE

_DRAWING = Drawing(steps=20, guidance=GUIDANCE, side=SIZE)
_REFERENCE_SEEDS = (1000, 1001, 1002, 1003)
_UNRELATED = ("a red star on a mint background in dots style", "a blue moon on a white background in flat style")
"""Prompts without subject and style: what a merge draws of them should be what the base draws."""
_RESAMPLES = 10_000
_ENCODERS: tuple[tuple[Metric, str], ...] = (("clip-t", "clip"), ("clip-i", "style"), ("dino", "subject"))
_PARTS = ("value", "floor", "ceiling", "position")

TRIALS: Mapping[str, tuple[Mapping[str, Parameter], ...]] = {
    "direct": (
        {},
        {"subject_weight": 0.8, "style_weight": 0.8},
        {"subject_weight": 0.6, "style_weight": 0.6},
        {"subject_weight": 1.0, "style_weight": 0.7},
        {"subject_weight": 0.7, "style_weight": 1.0},
    ),
    "ziplora": (
        {"third_term": "literal", "third_term_weight": 0.01, "balanced": False, "start": "ones", "steps": 100},
        {"third_term": "mean", "third_term_weight": 0.01, "balanced": False, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.0, "balanced": False, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.01, "balanced": True, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.0, "balanced": True, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.0, "balanced": True, "start": "lsq", "steps": 20},
    ),
    "ziplora-lsq": (
        {"ridge": 0.001, "passes": 1},
        {"ridge": 0.01, "passes": 1},
        {"ridge": 0.1, "passes": 1},
        {"ridge": 1.0, "passes": 1},
        {"ridge": 0.01, "passes": 2},
    ),
    "np-lora": ({"mu": 0.5}, {"mu": 0.1}, {"mu": 0.25}, {"mu": 1.0}, {"mu": 4.0}),
}
"""What is tried of each method: first the method as it is published, then other settings of it."""


@dataclass(frozen=True)
class Size:
    """How much each figure stands on."""

    adapters: int
    """Subjects, and styles, of each half."""
    backgrounds: int
    """One joint prompt for each."""
    tuning_seeds: int
    seeds: int


FULL = Size(adapters=4, backgrounds=6, tuning_seeds=1, seeds=6)
SMOKE = Size(adapters=1, backgrounds=1, tuning_seeds=1, seeds=1)


@dataclass(frozen=True)
class Entry:
    """One adapter of the tiny world."""

    plan: AdapterPlan
    file: Path
    references: References

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


@dataclass(frozen=True)
class Placed:
    """A mean score with what the base alone and one LoRA alone reach."""

    value: float
    floor: float
    ceiling: float

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
    def harmonic(self) -> float:
        """Of the positions of subject and style."""
        return harmonic_mean(self.subject.position, self.style.position)


@dataclass(frozen=True)
class Trial:
    """One setting of a method, with all its outcomes; empty when it is no merge at all."""

    method: str
    parameters: Mapping[str, Parameter]
    """What differs from the method's defaults when this was written."""
    outcomes: tuple[Outcome, ...]
    failure: str | None

    @property
    def harmonic(self) -> float:
        """Mean over the pairs; a setting that fails is worth nothing."""
        return float(np.mean([outcome.harmonic for outcome in self.outcomes])) if self.outcomes else 0.0


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
        """What an adapter draws of its own trigger prompt."""
        single = Single(entry.sha256, "tinyworld", self.base_revision, _DRAWING)
        request = PreviewRequest((entry.plan.trigger_prompt,), tuple(seeds), _DRAWING)
        return preview_single(single, request, entry.file, self.backbone, self.store)

    def outcome(self, pair: Pair, method: str, given: Mapping[str, Parameter], prompts: int, seeds: int) -> Outcome:
        """Merge, draw, score and judge one pair; raises Failure when there is no merge."""
        recipe = self.recipe(pair, method, given)
        files = pair.subject.file, pair.style.file
        result = merge(recipe, *files, self.backbone, self.store, pair.subject.references, pair.style.references)
        joint = tuple(joint_prompt(pair.subject.plan, pair.style.plan, name) for name in list(BACKGROUNDS)[:prompts])
        request = PreviewRequest(joint, tuple(range(seeds)), _DRAWING)
        merged = preview_merge(recipe, request, *files, self.backbone, self.store)
        base = Single(None, "tinyworld", self.base_revision, _DRAWING)
        evidence = Evidence(
            merged,
            preview_single(base, request, None, self.backbone, self.store),
            self.alone(pair.subject, _REFERENCE_SEEDS),
            self.alone(pair.style, _REFERENCE_SEEDS),
            pair.subject.references,
            pair.style.references,
        )
        rows = score_merge(recipe.merge_id, evidence, tuple(self.scorers.values()), self.store)
        verdicts = judge_pictures(self.judge, _pixels(merged))
        seen = [
            (verdict.figure == pair.subject.plan.name, verdict.style == pair.style.plan.name) for verdict in verdicts
        ]
        unrelated = PreviewRequest(_UNRELATED, tuple(range(seeds)), _DRAWING)
        drawn = preview_merge(recipe, unrelated, *files, self.backbone, self.store)
        by_base = preview_single(base, unrelated, None, self.backbone, self.store)
        losses = result.losses
        return Outcome(
            pair=pair.name,
            subject=_placed(rows, "dino"),
            style=_placed(rows, "clip-i"),
            text=_placed(rows, "clip-t"),
            judged_subject=float(np.mean([subject for subject, _ in seen])),
            judged_style=float(np.mean([style for _, style in seen])),
            judged_both=float(np.mean([subject and style for subject, style in seen])),
            drift=self._distance(drawn, by_base),
            errors=(losses.last_subject, losses.last_style) if losses else None,
            seconds=result.seconds,
        )

    def recipe(self, pair: Pair, method: str, given: Mapping[str, Parameter]) -> Recipe:
        """Of a pair, its calibrations from the adapters' own pictures."""

        def calibration(entry: Entry) -> Calibration | None:
            if not METHODS[method].calibrated:
                return None
            prompt, digest = entry.plan.trigger_prompt, entry.references.sha256
            return Calibration(entry.sha256, "tinyworld", self.base_revision, prompt, digest, side=SIZE)

        return Recipe(
            subject_sha256=pair.subject.sha256,
            style_sha256=pair.style.sha256,
            base_model="tinyworld",
            base_revision=self.base_revision,
            method=method,
            parameters=complete_parameters(method, given),
            subject_calibration=calibration(pair.subject),
            style_calibration=calibration(pair.style),
        )

    def _distance(self, one: PreviewResult, other: PreviewResult) -> float:
        seen = [self.scorers["clip-t"].embed_pictures(result.paths) for result in (one, other)]
        return 1 - float((seen[0] * seen[1]).sum(1).mean())

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


def _placed(rows: Sequence[ScoreRow], metric: str) -> Placed:
    own = [row for row in rows if row.scorer_id.startswith(f"{metric}:")]
    return Placed(float(np.mean([row.value for row in own])), own[0].floor, own[0].ceiling)


def _pixels(result: PreviewResult) -> NDArray[np.uint8]:
    pictures = []
    for path in result.paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)


def interval(values: Float[NDArray[np.float64], " pairs"]) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over pairs."""
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def sheet(world: World, trial: Trial, pairs: Sequence[Pair]) -> Image.Image:
    """A picture of each pair, a subject to a row, after what the subject draws alone; styles alone come first."""
    styles = list({pair.style.plan.name: pair.style for pair in pairs}.values())
    subjects = list({pair.subject.plan.name: pair.subject for pair in pairs}.values())
    cells = [np.full((SIZE, SIZE, 3), 250, dtype=np.uint8)]
    labels = [trial.method]
    for style in styles:
        cells.append(_pixels(world.alone(style, (_REFERENCE_SEEDS[0],)))[0])
        labels.append(f"{style.plan.name} alone")
    for subject in subjects:
        cells.append(_pixels(world.alone(subject, (_REFERENCE_SEEDS[0],)))[0])
        labels.append(f"{subject.plan.name} alone")
        for style in styles:
            recipe = world.recipe(Pair(subject, style), trial.method, trial.parameters)
            prompt = joint_prompt(subject.plan, style.plan, next(iter(BACKGROUNDS)))
            request = PreviewRequest((prompt,), (0,), _DRAWING)
            drawn = preview_merge(recipe, request, subject.file, style.file, world.backbone, world.store)
            cells.append(_pixels(drawn)[0])
            labels.append(" ")
    return contact_sheet(np.stack(cells), labels, len(styles) + 1)


def summary(trial: Trial, direct: Trial) -> dict[str, Any]:
    """One row of the table: means over the pairs, with the gain over the direct merge of the same pairs."""
    outcomes = trial.outcomes
    if not outcomes:
        return {"method": trial.method, "parameters": trial.parameters, "failure": trial.failure}
    harmonic = np.array([outcome.harmonic for outcome in outcomes])
    gains = harmonic - np.array([outcome.harmonic for outcome in direct.outcomes])

    def mean(name: str) -> float:
        return float(np.mean([getattr(outcome, name) for outcome in outcomes]))

    return {
        "method": trial.method,
        "parameters": trial.parameters,
        "pairs": len(outcomes),
        "harmonic": float(harmonic.mean()),
        "harmonic_interval": interval(harmonic),
        "gain": float(gains.mean()),
        "gain_interval": interval(gains),
        "better_than_direct": float(np.mean(gains > 0)),
        **{
            metric: {part: float(np.mean([getattr(getattr(one, metric), part) for one in outcomes])) for part in _PARTS}
            for metric in ("subject", "style", "text")
        },
        **{name: mean(name) for name in ("judged_subject", "judged_style", "judged_both", "drift", "seconds")},
    }


def evaluate(files: Path, work: Path, docs: Path, size: Size) -> dict[str, Any]:
    """All figures; a sheet of pictures for each method goes to `docs`."""
    world = World(files, work)
    tuning, reported = world.halves(size.adapters)
    tried: list[Trial] = []
    shown: list[Trial] = []
    docs.mkdir(parents=True, exist_ok=True)
    for method, settings in TRIALS.items():
        trials = [world.trial(method, given, tuning, size.backgrounds, size.tuning_seeds) for given in settings]
        best = max(range(len(trials)), key=lambda index: trials[index].harmonic)
        finals = [world.trial(method, settings[i], reported, size.backgrounds, size.seeds) for i in sorted({0, best})]
        if finals[-1].outcomes:
            sheet(world, finals[-1], reported).save(docs / f"{method}.png")
        tried += trials
        shown += finals
    return {
        "size": asdict(size),
        "tuning": [summary(trial, tried[0]) for trial in tried],
        "reported": [summary(trial, shown[0]) for trial in shown],
        "pairs": [
            {"method": trial.method, "parameters": trial.parameters, **asdict(outcome), "harmonic": outcome.harmonic}
            for trial in shown
            for outcome in trial.outcomes
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the bundled world, write evaluated.json, the page and the sheets to the docs."""
    parser = argparse.ArgumentParser(prog="python -m ziplora.tinyworld.evaluate", description=__doc__)
    parser.add_argument("--files", type=Path, default=FILES, help="the trained files (default: the bundled ones)")
    parser.add_argument("--work", type=Path, default=Path("build/evaluation"), help="store of merges and pictures")
    parser.add_argument("--docs", type=Path, default=Path("docs/methods"), help="folder of table and sheets")
    parser.add_argument("--smoke", action="store_true", help="one pair and one picture only: does everything run?")
    options = parser.parse_args(arguments)
    evaluated = evaluate(options.files, options.work, options.docs, SMOKE if options.smoke else FULL)
    (options.docs / "evaluated.json").write_text(json.dumps(evaluated, indent=1) + "\n")
    (options.docs / "README.md").write_text(evaluation_page(evaluated))


if __name__ == "__main__":
    main()

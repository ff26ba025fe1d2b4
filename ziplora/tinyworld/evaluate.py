"""Judge every method on every pair of the tiny world: `python -m ziplora.tinyworld.evaluate`.

Settings are chosen on half of the subjects and half of the styles, and what is reported comes from the pairs of the
other halves. Everything lies in a store, so that a run that was stopped goes on where it was.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from ziplora.recipe import Parameter
from ziplora.sheet import contact_sheet

from .bundle import FILES
from .evaluate_page import evaluation_page
from .trials import REFERENCE_SEEDS, Pair, Placed, Trial, World, pixels_of
from .world import SIZE

_RESAMPLES = 10_000
_PARTS = ("value", "floor", "ceiling")

TRIALS: Mapping[str, tuple[Mapping[str, Parameter], ...]] = {
    "direct": ({}, {"subject_weight": 0.8, "style_weight": 0.8}, {"subject_weight": 1.0, "style_weight": 0.7}),
    "ziplora": (
        {"third_term": "literal", "third_term_weight": 0.01, "balanced": False, "start": "ones", "steps": 100},
        {"third_term": "mean", "third_term_weight": 0.01, "balanced": True, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.01, "balanced": True, "start": "ones", "steps": 100},
        {"third_term": "cosine", "third_term_weight": 0.0, "balanced": True, "start": "lsq", "steps": 20},
    ),
    "ziplora-joint": (
        {"steps": 400, "learning_rate": 0.03},
        {"steps": 200, "learning_rate": 0.06},
        {"steps": 100, "learning_rate": 0.1},
    ),
    "ziplora-lsq": ({"ridge": 0.01, "passes": 1}, {"ridge": 0.01, "passes": 2}, {"ridge": 1.0, "passes": 1}),
    "np-lora": ({"mu": 0.5}, {"mu": 0.1}, {"mu": 4.0}),
    "ties": ({"density": 0.2}, {"density": 0.5}),
    "dare": ({"density": 0.5},),
}
"""What is tried of each method; the first, the published one where there is any, is reported beside the best."""


@dataclass(frozen=True)
class Size:
    """How much each figure stands on."""

    adapters: int
    """Subjects, and styles, of each half."""
    backgrounds: int
    """One joint prompt for each."""
    seeds: int


FULL = Size(adapters=4, backgrounds=3, seeds=8)
SMOKE = Size(adapters=1, backgrounds=1, seeds=1)


def interval(values: Float[NDArray[np.float64], " pairs"]) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over pairs."""
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def sheet(world: World, trial: Trial, pairs: Sequence[Pair]) -> Image.Image:
    """A picture of each pair, a subject to a row, after what the subject draws alone; styles alone come first."""
    rows: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        rows[pair.subject.plan.name].append(pair)
    styles = [pair.style for pair in next(iter(rows.values()))]
    first = REFERENCE_SEEDS[:1]
    cells = [np.full((SIZE, SIZE, 3), 250, dtype=np.uint8), *(pixels_of(world.alone(one, first))[0] for one in styles)]
    labels = [trial.method, *(f"{style.plan.name} alone" for style in styles)]
    for name, row in rows.items():
        cells.append(pixels_of(world.alone(row[0].subject, first))[0])
        for pair in row:
            recipe = world.recipe(pair, trial.method, trial.parameters)
            cells.append(pixels_of(world.by_merge(recipe, pair, pair.joint_prompts[:1], [0]))[0])
        labels += [f"{name} alone", *(" " for _ in row)]
    return contact_sheet(np.stack(cells), labels, len(styles) + 1)


def _middle(placed: Sequence[Placed]) -> dict[str, float]:
    """Means over pairs, and the position of their value: single positions fly off where a ceiling is near its floor."""
    value, floor, ceiling = (float(np.mean([getattr(one, part) for one in placed])) for part in _PARTS)
    middle = Placed(value, floor, ceiling)
    return {**asdict(middle), "position": middle.position}


def summary(trial: Trial, direct: Trial) -> dict[str, Any]:
    """One row of the table: means over the pairs, with the gain over the direct merge of the same pairs."""
    outcomes = trial.outcomes
    if not outcomes:
        return {"method": trial.method, "parameters": trial.parameters, "failure": trial.failure}
    places = [
        (one.harmonic, other.harmonic) for one, other in zip(outcomes, direct.outcomes, strict=True) if one.is_placed
    ]
    harmonic = np.array([own for own, _ in places])
    gains = harmonic - np.array([other for _, other in places])

    def mean(name: str) -> float:
        return float(np.mean([getattr(outcome, name) for outcome in outcomes]))

    return {
        "method": trial.method,
        "parameters": trial.parameters,
        "pairs": len(outcomes),
        "placed": len(places),
        "harmonic": float(harmonic.mean()),
        "harmonic_interval": interval(harmonic),
        "gain": float(gains.mean()),
        "gain_interval": interval(gains),
        "better_than_direct": float(np.mean(gains > 0)),
        **{metric: _middle([getattr(one, metric) for one in outcomes]) for metric in ("subject", "style", "text")},
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
        trials = [world.trial(method, given, tuning, size.backgrounds, size.seeds) for given in settings]
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

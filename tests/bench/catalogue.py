"""What a pair costs in a catalogue of subjects × styles as it grows: `python -m tests.bench.catalogue`.

Calibrations are computed once per adapter and shared by its pairs; each size starts with an empty store and a freshly
loaded base. The straightforward implementation shares nothing between pairs, so that a pair costs the same at any size.
Beside the cost stands how near to both adapters the fits come on noise that none of them has seen.

Seconds are the processor's, of this process: what else runs on the machine does not count.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ziplora.adapter import read
from ziplora.backbone import Sdxl
from ziplora.calibration import Calibrated, calibrate, repeated
from ziplora.merge import merge, read_coefficients
from ziplora.methods import METHODS, read_parameters, ziplora, ziplora_lsq
from ziplora.methods.solution import Problem, relative_errors, unheard
from ziplora.pair import DIRECT
from ziplora.pair import Pair as Layers
from ziplora.recipe import Calibration, Parameter
from ziplora.tinyworld.bundle import FILES
from ziplora.tinyworld.trials import Entry, Pair, World

from .straightforward import DenseMerge, Settings

SIZES = (1, 2, 4, 6)
"""Subjects, and styles."""
_WARM_STEPS = 20
_HELD_OUT_SEED = 1


@dataclass(frozen=True)
class Variant:
    """A method with its parameters."""

    name: str
    method: str
    parameters: Mapping[str, Parameter]
    every_pair: bool
    """Whether all pairs are merged, or a sample whose mean counts for the rest.

    Least squares computes what belongs to an adapter when it first meets it, so that a sample would not do.
    """


def variants(steps: int) -> tuple[Variant, ...]:
    """What is measured; `ziplora-joint` goes twice as many steps as `ziplora`, as it does by default."""
    return (
        Variant("direct", "direct", {}, True),
        Variant("np-lora", "np-lora", {}, True),
        Variant("ziplora-lsq", "ziplora-lsq", {}, True),
        Variant("ziplora-lsq, 2 passes", "ziplora-lsq", {"passes": 2}, True),
        Variant(f"ziplora from lsq, {_WARM_STEPS} steps", "ziplora", {"start": "lsq", "steps": _WARM_STEPS}, True),
        Variant(f"ziplora, {steps} steps", "ziplora", {"steps": steps}, False),
        Variant(f"ziplora-joint, {2 * steps} steps", "ziplora-joint", {"steps": 2 * steps}, False),
    )


@dataclass(frozen=True)
class Cost:
    """What a pair costs by one method in a catalogue of one size."""

    variant: str
    pairs: int
    merged: int
    """How many of them were."""
    calibration_seconds: float
    """Of all adapters together; nothing for a method without calibration."""
    merge_seconds: float
    """Mean over the merged pairs."""
    merge_bytes: float
    """What the store keeps of a merge, mean over the merged pairs."""

    @property
    def seconds_per_pair(self) -> float:
        """Every pair with its share of the calibrations."""
        return self.calibration_seconds / self.pairs + self.merge_seconds


@dataclass(frozen=True)
class Straightforward:
    """What a pair costs by the straightforward implementation, in a catalogue of any size."""

    merged: int
    seconds: float
    """Mean over the merged pairs, encoded pictures and prompts being there."""
    file_bytes: float
    """Of the dense changes, in single precision."""
    base_seconds: float
    """What nobody's steps can do without: passes of the base alone over what each shows, forward and back."""


@dataclass(frozen=True)
class Objective:
    """How far merges are from both adapters on noise that no method has seen, each error in units of its adapter."""

    variant: str
    error: float
    """Sum of both sides' relative errors, mean over the sample."""
    reduction: float
    """Share of the direct merge's error that is gone."""
    merge_seconds: float
    """Mean over the same pairs."""
    fit_seconds: float
    """Of the coefficients alone, without files and without the errors before and after that every merge reports."""


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    steps: int
    costs: Sequence[Cost]
    straightforward: Straightforward
    objectives: Sequence[Objective]


def _calibrations(world: World, pairs: Sequence[Pair]) -> dict[Calibration, Entry]:
    """Every adapter's own, once."""
    found = {}
    for pair in pairs:
        recipe = world.recipe(pair, "ziplora", {})
        for calibration, entry in (
            (recipe.subject_calibration, pair.subject),
            (recipe.style_calibration, pair.style),
        ):
            assert calibration is not None
            found[calibration] = entry
    return found


def _calibrated(world: World, pair: Pair, seed: int) -> list[Calibrated]:
    return [
        calibrate(replace(one, seed=seed), entry.file, world.backbone, world.store, entry.references)
        for one, entry in _calibrations(world, [pair]).items()
    ]


def _fit_seconds(problem: Problem, variant: Variant) -> float:
    fit: Mapping[str, Callable[[Problem, Any], object]] = {
        "ziplora": ziplora.fit,
        "ziplora-lsq": ziplora_lsq.least_squares,
    }
    parameters = read_parameters(variant.method, variant.parameters)
    started = time.process_time()
    fit[variant.method](problem, parameters)
    return time.process_time() - started


def _base_seconds(backbone: Sdxl, sides: Sequence[Calibrated], steps: int) -> float:
    """The way back ends at the first attention layer: nothing before it is learned."""
    first = next(module for name, module in backbone.pipeline.unet.named_modules() if name.endswith("to_q"))
    learned = torch.zeros((), requires_grad=True)
    shown = slice(ziplora.Parameters.samples_per_step)
    noisy, timesteps = (torch.cat([getattr(side, name)[shown] for side in sides]) for name in ("noisy", "timesteps"))
    condition = repeated(sides[0].condition, len(noisy), backbone.device)
    with first.register_forward_hook(lambda _module, _inputs, outputs: outputs + learned):
        started = time.process_time()
        for _ in range(steps):
            torch.autograd.grad(backbone.predict(noisy, timesteps, condition).sum(), learned)
        return time.process_time() - started


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class Catalogue:
    """A catalogue of one size, in a store of its own."""

    def __init__(self, size: int, sample: int, work: Path) -> None:
        self._work = work
        self._merge_seconds: dict[tuple[str, str], float] = {}
        """By variant and pair."""
        world = World(FILES, work)
        self.pairs = [Pair(*two) for two in product(world.subjects[:size], world.styles[:size])]
        self.sampled = random.Random(0).sample(self.pairs, min(sample, len(self.pairs)))
        calibrations = _calibrations(world, self.pairs)
        started = time.process_time()
        for calibration, entry in calibrations.items():
            calibrate(calibration, entry.file, world.backbone, world.store, entry.references)
        self.calibration_seconds = time.process_time() - started

    def cost(self, variant: Variant) -> Cost:
        """Merge all pairs or the sample, on a base that remembers nothing of other methods."""
        world = World(FILES, self._work)
        chosen = self.pairs if variant.every_pair else self.sampled
        kept_bytes = []
        for pair in chosen:
            recipe = world.recipe(pair, variant.method, variant.parameters)
            subject, style = pair.subject, pair.style
            started = time.process_time()
            merge(recipe, subject.file, style.file, world.backbone, world.store, subject.references, style.references)
            self._merge_seconds[variant.name, pair.name] = time.process_time() - started
            kept_bytes.append(_folder_bytes(world.store.merge(recipe.merge_id)))
        shared = self.calibration_seconds if METHODS[variant.method].calibrated else 0.0
        seconds = mean(self._merge_seconds[variant.name, pair.name] for pair in chosen)
        return Cost(variant.name, len(self.pairs), len(chosen), shared, seconds, mean(kept_bytes))

    def straightforward(self, steps: int) -> Straightforward:
        """The straightforward implementation on the sample."""
        world, path = World(FILES, self._work), self._work / "dense.safetensors"
        seconds, file_bytes = [], []
        for pair in self.sampled:
            sides = _calibrated(world, pair, seed=0)
            started = time.process_time()
            layers = [read(entry.file).layers for entry in (pair.subject, pair.style)]
            dense = DenseMerge.of(world.backbone.pipeline.unet, *layers)
            dense.train(sides, Settings(steps, ziplora.Parameters.samples_per_step), unheard)
            dense.save(path)
            seconds.append(time.process_time() - started)
            file_bytes.append(path.stat().st_size)
        return Straightforward(
            len(self.sampled), mean(seconds), mean(file_bytes), _base_seconds(world.backbone, sides, steps)
        )

    def objectives(self, compared: Sequence[Variant]) -> list[Objective]:
        """The sample's finished merges on calibrations of another seed, against the direct merge."""
        world = World(FILES, self._work)
        direct: list[float] = []
        errors: dict[str, list[float]] = {variant.name: [] for variant in compared}
        seconds: dict[str, list[float]] = {variant.name: [] for variant in compared}
        for pair in self.sampled:
            layers = Layers(*(read(entry.file).layers for entry in (pair.subject, pair.style)))
            subject, style = _calibrated(world, pair, _HELD_OUT_SEED)
            unseen = Problem(layers, world.backbone, subject, style, 0, unheard)
            direct.append(sum(relative_errors(unseen, DIRECT)))
            subject, style = _calibrated(world, pair, 0)
            seen = replace(unseen, subject=subject, style=style)
            ziplora_lsq.least_squares(seen, ziplora_lsq.Parameters())  # what belongs to an adapter is at hand then
            for variant in compared:
                seconds[variant.name].append(_fit_seconds(seen, variant))
                merge_id = world.recipe(pair, variant.method, variant.parameters).merge_id
                errors[variant.name].append(sum(relative_errors(unseen, read_coefficients(world.store, merge_id))))
        return [
            Objective(
                name,
                mean(found),
                1 - mean(found) / mean(direct),
                mean(self._merge_seconds[name, pair.name] for pair in self.sampled),
                mean(seconds[name]),
            )
            for name, found in errors.items()
        ]


def measure(measured: Sequence[Variant], sizes: Sequence[int], steps: int, sample: int, work: Path) -> Report:
    """What is to be measured at all sizes; the straightforward implementation and the objectives at the last one."""
    costs = []
    for size in sizes:
        catalogue = Catalogue(size, sample, work / str(size))
        costs += [catalogue.cost(variant) for variant in measured]
    fitted = [variant for variant in measured if variant.method in {"ziplora", "ziplora-lsq"}]
    return Report(steps, costs, catalogue.straightforward(steps), catalogue.objectives(fitted))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Table:
    shown = Table("", title=title, title_justify="left", caption=caption)
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


def tables(report: Report) -> tuple[Table, Table]:
    """Seconds and bytes of a pair by size of the catalogue; errors on held-out noise."""
    plain = report.straightforward
    by_name: dict[str, list[Cost]] = {}
    for cost in report.costs:
        by_name.setdefault(cost.variant, []).append(cost)
    rows = []
    for name, costs in by_name.items():
        last = costs[-1]
        seconds = [f"{cost.seconds_per_pair:.2f}" for cost in costs]
        ratios = [f"{plain.seconds / last.seconds_per_pair:.1f}", f"{plain.file_bytes / last.merge_bytes:.1f}"]
        rows.append(
            [name, *seconds, f"{last.merged} of {last.pairs}", ratios[0], f"{last.merge_bytes:,.0f}", ratios[1]]
        )
    of_any_size = [f"{plain.seconds:.2f}" for _ in costs]
    rows.append(["straightforward", *of_any_size, f"{plain.merged}", "1.0", f"{plain.file_bytes:,.0f}", "1.0"])
    of_any_size = [f"{plain.base_seconds:.2f}" for _ in costs]
    rows.append(["passes of the base alone", *of_any_size, "", f"{plain.seconds / plain.base_seconds:.1f}", "", ""])
    columns = [f"pairs: {cost.pairs}" for cost in costs]
    columns += ["merged of the last", "times faster", "bytes a pair", "times smaller"]
    growth = _table(
        f"Seconds a pair; the straightforward implementation takes {report.steps} steps",
        columns,
        rows,
        "Shares of the calibrations included; where not all pairs were merged, the mean of a seeded sample counts.",
    )
    by_gradient = next(one for one in report.objectives if one.variant == f"ziplora, {report.steps} steps")
    errors = _table(
        f"Errors of both sides on held-out noise, {plain.merged} pairs",
        ["error", "reduction", "of that by gradient", "merge", "of that by gradient", "fit", "of that by gradient"],
        [
            [
                one.variant,
                f"{one.error:.3f}",
                f"{one.reduction:.1%}",
                f"{one.reduction / by_gradient.reduction:.1%}",
                f"{one.merge_seconds:.2f}",
                f"{one.merge_seconds / by_gradient.merge_seconds:.1%}",
                f"{one.fit_seconds:.2f}",
                f"{one.fit_seconds / by_gradient.fit_seconds:.1%}",
            ]
            for one in report.objectives
        ],
        "Seconds; calibrations are cached, and a fit is a merge without files and without the errors it reports.",
    )
    return growth, errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, where asked, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.catalogue", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="subjects, and styles (default: 1 2 4 6)")
    parser.add_argument("--steps", type=int, default=100, help="of ziplora, as of the straightforward implementation")
    parser.add_argument("--sample", type=int, default=3, help="pairs merged by each slow method (default: 3)")
    parser.add_argument("--json", type=Path, help="where the figures are written too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as work:
        report = measure(variants(options.steps), options.sizes, options.steps, options.sample, Path(work))
    for table in tables(report):
        Console(width=160).print(table)
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

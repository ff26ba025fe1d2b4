"""What every method takes and gives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ziplora.backbone import Backbone, forward_with
from ziplora.calibration import Calibrated, predict_all
from ziplora.elementwise import Elementwise, combined_layer
from ziplora.failure import Failure
from ziplora.pair import Coefficients, Pair, merged_layers
from ziplora.recipe import Losses

_UNMOVED = 0.02

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


def unheard(done: int, total: int) -> None:
    """The progress that nobody follows."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Two adapters to merge on a base."""

    pair: Pair
    backbone: Backbone
    subject: Calibrated | None
    style: Calibrated | None
    """None for a method that needs no calibration."""
    seed: int
    progress: Progress
    joint: tuple[Calibrated, ...] = ()
    """One calibration for each joint prompt, where the method needs any."""

    @property
    def calibrations(self) -> tuple[Calibrated, Calibrated]:
        """Those of subject and style, of one shape."""
        assert self.subject is not None
        assert self.style is not None
        shapes = [tuple(side.noisy.shape[1:]) for side in (self.subject, self.style)]
        if shapes[0] != shapes[1]:
            fact = f"The subject's latents have the shape {shapes[0]}, the style's {shapes[1]}."
            raise Failure("CALIBRATION_MISMATCH", fact, "calibrate both at one picture side.")
        return self.subject, self.style


@dataclass(frozen=True, eq=False)
class Solution:
    """The coefficients that a method found, and how it got there."""

    coefficients: Coefficients
    losses: Losses | None
    rank_error: float | None = None
    """Of a merge that its rank cannot hold exactly: see `rank_error`."""


def relative_errors(problem: Problem, coefficients: Coefficients) -> tuple[float, float]:
    """Each side's error over all of its samples, in units of its own adapter's effect."""
    subject, style = _errors(problem, coefficients, problem.calibrations)
    return subject, style


def joint_error(problem: Problem, coefficients: Coefficients) -> float:
    """The same on the joint prompts, in units of the sum of both effects; the mean over all prompts."""
    errors = _errors(problem, coefficients, problem.joint)
    return sum(errors) / len(errors)


def _errors(problem: Problem, coefficients: Coefficients, calibrations: Sequence[Calibrated]) -> list[float]:
    layers = merged_layers(problem.pair, coefficients)
    errors = []
    with problem.backbone.replaced({module: forward_with(layer, problem.backbone) for module, layer in layers.items()}):
        for side in calibrations:
            predicted = predict_all(problem.backbone, side.noisy, side.timesteps, side.condition)
            errors.append(float((predicted - side.teacher).square().mean()) / side.effect)
    return errors


def rank_error(problem: Problem, kept: Elementwise) -> float:
    """‖what is left out by the cut to the rank of both‖ / ‖the change in full‖, over all merged layers."""
    pair, lost, whole = problem.pair, 0.0, 0.0
    for done, module in enumerate(pair.merged, start=1):
        layer, dropped = combined_layer(kept, module, pair.subject[module], pair.style[module])
        lost += float(dropped.square().sum())
        whole += layer.delta_norm() ** 2
        problem.progress(done, len(pair.merged))
    return math.sqrt(lost / (lost + whole)) if lost else 0.0


def refuse_strangers(pair: Pair) -> None:
    """Refuse a pair that has nothing to be merged but the direct sum."""
    if not pair.merged:
        fact = "The two adapters have no attention layer in common, so the result would be the direct merge."
        raise Failure("NO_SHARED_LAYERS", fact, "use the method direct, which adds them up.")


def refuse_standstill(movement: float, effort: str, start: str, next_step: str) -> None:
    """Refuse coefficients that are still, as good as, those they started from."""
    if movement < _UNMOVED:
        fact = f"{effort} no coefficient moved by more than {movement:.2g}, so the result would be {start}."
        raise Failure("MERGE_UNMOVED", fact, next_step)


def require(holds: bool, parameter: str, fact: str) -> None:
    """A parameter's bound, as a failure that names it."""
    if not holds:
        raise Failure("PARAMETER_INVALID", f"Parameter {parameter} {fact}.", "correct it in the configuration.")


def is_number(value: float) -> bool:
    """Whether a parameter is finite."""
    return math.isfinite(value)

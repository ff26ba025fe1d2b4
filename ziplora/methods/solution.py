"""What every method takes and gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ziplora.backbone import Backbone
from ziplora.calibration import Calibrated
from ziplora.failure import Failure
from ziplora.pair import Coefficients, Pair
from ziplora.recipe import Losses

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


def require(holds: bool, parameter: str, fact: str) -> None:
    """A parameter's bound, as a failure that names it."""
    if not holds:
        raise Failure("PARAMETER_INVALID", f"Parameter {parameter} {fact}.", "correct it in the configuration.")


def is_number(value: float) -> bool:
    """Whether a parameter is finite."""
    return math.isfinite(value)

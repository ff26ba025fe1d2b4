"""ZipLoRA (arXiv 2311.13600): learn how much of each input feature either adapter may change.

The targets are the adapters' own predictions, the subject's on its prompt and the style's on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ziplora.calibration import Calibrated
from ziplora.pair import DIRECT, Coefficients
from ziplora.recipe import Losses

from . import ziplora_lsq
from .descent import Curve, Descent, descend, squared_error
from .solution import Problem, Solution, is_number, refuse_strangers, relative_errors, require, unheard
from .student import Rows, Student

_STARTS = {"ones": "the direct merge", "lsq": "that of ziplora-lsq"}
_WARM = ziplora_lsq.Parameters(ridge=0.01, passes=2)
"""No recipe says it: whoever changes it raises RECIPE_VERSION."""
_TINY = 1e-12


@dataclass(frozen=True)
class Parameters:
    """The paper's settings, but for the third term and the balance."""

    steps: int = 100
    learning_rate: float = 0.01
    third_term: str = "cosine"
    """How a layer's |m_c · m_s| is read: `literal` as printed, its `mean` over columns, or the `cosine` of the two.

    The last two come out level (docs/methods), but the cosine cannot be lowered by shrinking both vectors.
    """
    third_term_weight: float = 0.01
    balanced: bool = True
    """Whether each side's loss is divided by what its own adapter changes, so that the stronger drowns no one."""
    samples_per_step: int = 2
    """How many samples of each side a step sees."""
    start: str = "ones"
    """Where the steps begin: `ones`, the direct merge, or `lsq`, what ziplora-lsq finds in two passes."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", f"is {self.steps}, less than 1")
        require(self.samples_per_step >= 1, "samples_per_step", f"is {self.samples_per_step}, less than 1")
        require(is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", "is not above 0")
        require(is_number(self.third_term_weight) and self.third_term_weight >= 0, "third_term_weight", "is below 0")
        forms = ("cosine", "mean", "literal")
        require(self.third_term in forms, "third_term", f"is {self.third_term!r}, not one of {', '.join(forms)}")
        require(self.start in _STARTS, "start", f"is {self.start!r}, not one of {', '.join(_STARTS)}")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """The coefficients after all steps of Adam, or a failure that says why there are none."""
    refuse_strangers(problem.pair)
    first = relative_errors(problem, DIRECT)
    coefficients, curve = fit(problem, parameters)
    return Solution(coefficients, Losses(*first, *relative_errors(problem, coefficients), curve=curve))


def fit(problem: Problem, parameters: Parameters) -> tuple[Coefficients, Curve]:
    """The coefficients and the terms on the way, without the errors before and after."""
    descent = Descent(
        parameters.steps,
        parameters.learning_rate,
        parameters.samples_per_step,
        _start(problem, parameters),
        _STARTS[parameters.start],
    )
    return descend(
        problem,
        problem.calibrations,
        descent,
        lambda student, shown, rows: objective(student, shown, rows, parameters),
        (1.0, 1.0, parameters.third_term_weight),
    )


def _start(problem: Problem, parameters: Parameters) -> Coefficients:
    if parameters.start == "ones":
        return DIRECT
    return ziplora_lsq.least_squares(replace(problem, progress=unheard), _WARM)


def objective(
    student: Student, sides: Sequence[Calibrated], rows: Rows, parameters: Parameters
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The three terms of the paper's equation 7 on some samples: subject, style, and what keeps the two apart."""
    subject, style = (
        squared_error(predicted, side, chosen) / (side.effect if parameters.balanced else 1.0)
        for predicted, side, chosen in zip(student.predict(sides, rows), sides, rows, strict=True)
    )
    return subject, style, third_term(student, parameters.third_term)


def third_term(student: Student, form: str) -> Float[Tensor, ""]:
    """Σ over layers of |m_c · m_s|, in one of its readings."""
    subject, style = student.flat.chunk(2)
    together = student.per_layer(subject * style)
    if form == "mean":
        together = together / student.per_layer(torch.ones_like(subject))
    elif form == "cosine":
        lengths = student.per_layer(subject.square()) * student.per_layer(style.square())
        together = together / lengths.clamp(min=_TINY).sqrt()
    return together.abs().sum()

"""ZipLoRA's coefficients, fitted to what is asked of a merge: subject and style together.

The paper's targets are what either adapter does on its own prompt, where a good fit silences the other one; pictures
are drawn from joint prompts, on which nothing was fitted. Here the merge learns to do in one pass, on several joint
prompts, what both adapters do there when their effects are added up (see `ziplora.joint`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ziplora.calibration import Calibrated
from ziplora.pair import DIRECT
from ziplora.recipe import Losses

from .descent import Descent, descend, squared_error
from .solution import Problem, Solution, is_number, joint_error, refuse_strangers, relative_errors, require
from .student import Rows, Student


@dataclass(frozen=True)
class Parameters:
    """How the coefficients are learned."""

    steps: int = 200
    learning_rate: float = 0.06
    """Of the first step; it falls to nothing along a straight line."""
    samples_per_step: int = 1
    """How many samples of each joint prompt a step sees."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", f"is {self.steps}, less than 1")
        require(self.samples_per_step >= 1, "samples_per_step", f"is {self.samples_per_step}, less than 1")
        require(is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", "is not above 0")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """The coefficients after all steps of Adam, or a failure that says why there are none."""
    refuse_strangers(problem.pair)

    def objective(student: Student, joint: Sequence[Calibrated], rows: Rows) -> tuple[Float[Tensor, ""]]:
        shown = zip(student.predict(joint, rows), joint, rows, strict=True)
        errors = [squared_error(predicted, one, chosen) / one.effect for predicted, one, chosen in shown]
        return (sum(errors[1:], errors[0]) / len(errors),)

    descent = Descent(
        parameters.steps,
        parameters.learning_rate,
        parameters.samples_per_step,
        default_rate=Parameters.learning_rate,
        decays=True,
    )
    coefficients, curve = descend(problem, problem.joint, descent, objective, (1.0,))
    losses = Losses(
        *relative_errors(problem, DIRECT),
        *relative_errors(problem, coefficients),
        curve=curve,
        first_joint=joint_error(problem, DIRECT),
        last_joint=joint_error(problem, coefficients),
    )
    return Solution(coefficients, losses)

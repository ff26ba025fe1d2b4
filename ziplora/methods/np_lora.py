"""NP-LoRA (arXiv 2511.11051): the style as it is, and the subject weakened in the directions that the style reads."""

from dataclasses import dataclass

from ziplora.pair import Coefficients

from .solution import Problem, Solution, is_number, refuse_strangers, require


@dataclass(frozen=True)
class Parameters:
    """The paper's soft projection."""

    mu: float = 0.5
    """How much an overlap costs against a change of the subject: μ / (1 + μ) of the overlap is taken away."""

    def __post_init__(self) -> None:
        require(is_number(self.mu) and self.mu > 0, "mu", "is not above 0")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """One number for all merged layers; the projection itself is made from the adapters whenever it is needed."""
    refuse_strangers(problem.pair)
    return Solution(Coefficients({}, {}, projection=parameters.mu / (1 + parameters.mu)), losses=None)

"""DARE (arXiv 2311.03099): numbers of either change are left out by chance, and the others made up for them."""

from dataclasses import dataclass

from ziplora.elementwise import Elementwise
from ziplora.pair import Coefficients

from .solution import Problem, Solution, rank_error, refuse_strangers, require


@dataclass(frozen=True)
class Parameters:
    """How much is left to chance."""

    density: float = 0.5
    """How many of either change's numbers are kept, divided by this share before they are added up."""

    def __post_init__(self) -> None:
        require(0 < self.density < 1, "density", f"is {self.density:g}, not between 0 and 1")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """Two numbers for all merged layers; they are made from the adapters whenever they are needed."""
    refuse_strangers(problem.pair)
    kept = Elementwise("dare", parameters.density, problem.seed)
    return Solution(Coefficients({}, {}, elementwise=kept), losses=None, rank_error=rank_error(problem, kept))

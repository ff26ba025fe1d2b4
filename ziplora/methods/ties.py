"""TIES (arXiv 2306.01708): the largest numbers of either change, averaged where their signs agree."""

from dataclasses import dataclass

from ziplora.elementwise import Elementwise
from ziplora.pair import Coefficients

from .solution import Problem, Solution, rank_error, refuse_strangers, require


@dataclass(frozen=True)
class Parameters:
    """The paper's share."""

    density: float = 0.2
    """How many of either change's numbers are kept, the largest; where signs differ, only those of the larger side."""

    def __post_init__(self) -> None:
        require(0 < self.density < 1, "density", f"is {self.density:g}, not between 0 and 1")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """One number for all merged layers; they are made from the adapters whenever they are needed."""
    refuse_strangers(problem.pair)
    kept = Elementwise("ties", parameters.density)
    return Solution(Coefficients({}, {}, elementwise=kept), losses=None, rank_error=rank_error(problem, kept))

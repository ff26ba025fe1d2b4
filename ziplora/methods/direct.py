"""The direct merge: the two adapters added up, each at its own weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ziplora.adapter import Layer
from ziplora.pair import Coefficients

from .solution import Problem, Solution, is_number, require


@dataclass(frozen=True)
class Parameters:
    """How strong each adapter is; 1 is as its file says."""

    subject_weight: float = 1.0
    style_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("subject_weight", "style_weight"):
            require(is_number(getattr(self, name)), name, "is not a finite number")


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """The same coefficient in every column of every UNet layer of an adapter."""
    pair = problem.pair
    return Solution(
        Coefficients(
            {m: _constant(pair.subject[m], parameters.subject_weight) for m in pair.unet if m in pair.subject},
            {m: _constant(pair.style[m], parameters.style_weight) for m in pair.unet if m in pair.style},
        ),
        losses=None,
    )


def _constant(layer: Layer, weight: float) -> Tensor:
    return torch.full((layer.down.shape[1],), weight)

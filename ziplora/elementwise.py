"""TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099): each number of two changes is kept or left out by itself.

What comes of it has every rank that a weight can have. It is cut to the rank of both adapters together, so that it is
as large as other merges, and what that loses is measured. Of peft's combinations with these names only the `_svd` ones
do so; the others treat the factors A and B each by itself, which is no rule about their product.

Neither coefficients nor factors hold such a merge: the layers are made again from the two adapters, by a dense SVD for
each, in minutes for SDXL.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import Layer
from .keys import Module
from .recipe import content_id
from .truncation import nearest_to

Rule = Literal["ties", "dare"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class Elementwise:
    """Which numbers of a layer's two changes are kept."""

    rule: Rule
    density: float
    """The share that is kept of either, between 0 and 1."""
    seed: int = 0
    """Of what DARE leaves out by chance."""


def combined(
    kept: Elementwise, module: Module, subject: Layer, style: Layer, style_strength: float = 1.0
) -> Float[Tensor, "out in"]:
    """The change of a weight in full, in double precision.

    What is kept, and whose sign counts, is decided at full strength: a weaker style is less of the same merge.
    """
    from peft.utils.merge_utils import dare_linear, ties  # takes seconds, and most merges need none of it

    changes = [layer.scale * layer.up.double() @ layer.down.flatten(1).double() for layer in (subject, style)]
    weights = torch.tensor([1.0, style_strength], dtype=torch.float64)
    if kept.rule == "ties":
        return ties(changes, weights, kept.density)
    with torch.random.fork_rng(devices=[]):  # peft takes no generator
        torch.manual_seed(int(content_id([kept.seed, module.path])[:15], 16))
        return dare_linear(changes, weights, kept.density)


def combined_layer(
    kept: Elementwise, module: Module, subject: Layer, style: Layer, style_strength: float = 1.0
) -> tuple[Layer, Float[Tensor, " dropped"]]:
    """The nearest layer of both ranks together, and the singular values that it lacks."""
    change = combined(kept, module, subject, style, style_strength)
    return nearest_to(change, subject.rank + style.rank, subject.down.dtype)

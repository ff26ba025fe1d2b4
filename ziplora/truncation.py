"""The nearest layers of a smaller rank, by SVD; of the factors where there are any, so that nothing is written out.

In double precision, so that hardly a bit of a file depends on the way in which a machine finds an SVD.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import Layer
from .keys import Module


def truncated(layers: Mapping[Module, Layer], rank: int) -> tuple[dict[Module, Layer], float]:
    """Every layer at no more than a rank, and ‖all changes − those left‖ / ‖all changes‖, a relative Frobenius error.

    Layers that have no more are left as they are; the others get the scale 1.
    """
    found: dict[Module, Layer] = {}
    lost = whole = 0.0
    for module, layer in layers.items():
        whole += layer.delta_norm() ** 2
        if layer.rank > rank:
            found[module], dropped = nearest(layer, rank)
            lost += float(dropped.square().sum())
        else:
            found[module] = layer
    return found, math.sqrt(lost / whole) if whole else 0.0


def nearest(layer: Layer, rank: int) -> tuple[Layer, Float[Tensor, " dropped"]]:
    """The layer of a rank whose change is the nearest in Frobenius norm, and the singular values that it lacks."""
    left, up = torch.linalg.qr(layer.scale * layer.up.double())
    right, down = torch.linalg.qr(layer.down.flatten(1).double().T)
    outputs, values, inputs = torch.linalg.svd(up @ down.T, full_matrices=False)
    kept = _layer(left @ outputs[:, :rank], values[:rank], inputs[:rank] @ right.T, layer.down.dtype)
    return replace(kept, down=kept.down.view(-1, *layer.down.shape[1:])), values[rank:]


def nearest_to(
    change: Float[Tensor, "out in"], rank: int, dtype: torch.dtype
) -> tuple[Layer, Float[Tensor, " dropped"]]:
    """The same of a change that has no factors."""
    outputs, values, inputs = torch.linalg.svd(change.double(), full_matrices=False)
    return _layer(outputs[:, :rank], values[:rank], inputs[:rank], dtype), values[rank:]


def _layer(
    outputs: Float[Tensor, "out rank"],
    values: Float[Tensor, " rank"],
    inputs: Float[Tensor, "rank in"],
    dtype: torch.dtype,
) -> Layer:
    """Each value shared evenly by up and down. An SVD leaves signs open: here each row's largest number is positive."""
    signs = inputs.gather(1, inputs.abs().argmax(1, keepdim=True)).sign()
    down, up = inputs * signs * values[:, None].sqrt(), outputs * signs.T * values.sqrt()
    return Layer(down.to(dtype), up.to(dtype), scale=1.0)

"""The nearest layers of a smaller rank, by SVD of the factors: no change of a weight is ever written out.

In double precision, so that hardly a bit of a file depends on the way in which a machine finds an SVD.
"""

import math
from collections.abc import Mapping

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
    """The layer of a rank whose change is the nearest in Frobenius norm, and the singular values that it lacks.

    Each value is shared evenly between up and down, and the largest number of every row of down is positive, since an
    SVD leaves the signs open.
    """
    left, up = torch.linalg.qr(layer.scale * layer.up.double())
    right, down = torch.linalg.qr(layer.down.flatten(1).double().T)
    outputs, values, inputs = torch.linalg.svd(up @ down.T, full_matrices=False)
    shares = values[:rank].sqrt()
    rows = (inputs[:rank] * shares[:, None]) @ right.T
    columns = left @ (outputs[:, :rank] * shares)
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    kept = Layer(
        (rows * signs).to(layer.down.dtype).view(-1, *layer.down.shape[1:]),
        (columns * signs.T).to(layer.up.dtype),
        scale=1.0,
    )
    return kept, values[rank:]

"""Two adapters on their way to one: which layers are merged, and the exact low-rank form of the merge.

The rule: coefficients are learned on queries, keys, values and outputs of the UNet's attentions, the paper's layers,
where both adapters have them. Every other UNet layer (feed-forward, convolution, or only in one adapter) passes
through as the direct sum. Layers of text encoders are left out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import Layer
from .elementwise import Elementwise, combined_layer
from .keys import Module

_ATTENTION = re.compile(r".*\.attn[12]\.(?:to_[qkv]|to_out\.0)")

Columns = Mapping[Module, Float[Tensor, " in"]]
"""Coefficients of one side: a factor for every input feature of its layers."""

_ROUNDING = torch.finfo(torch.float32).eps
"""A singular value below this part of the largest one is zero as far as single precision can tell."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The layers of a subject and a style adapter."""

    subject: Mapping[Module, Layer]
    style: Mapping[Module, Layer]

    @property
    def merged(self) -> tuple[Module, ...]:
        """The layers whose coefficients are learned."""
        common = self.subject.keys() & self.style.keys()
        return tuple(sorted(module for module in common if is_attention(module)))

    @property
    def unet(self) -> tuple[Module, ...]:
        """Every layer of the merge."""
        return tuple(sorted(module for module in self.subject.keys() | self.style.keys() if module.part == "unet"))

    @property
    def passed_through(self) -> tuple[Module, ...]:
        """UNet layers that are taken over as the direct sum."""
        merged = set(self.merged)
        return tuple(module for module in self.unet if module not in merged)

    def only(self, modules: tuple[Module, ...]) -> "Pair":
        """The same of some layers."""
        chosen = set(modules)
        return Pair(
            {module: layer for module, layer in self.subject.items() if module in chosen},
            {module: layer for module, layer in self.style.items() if module in chosen},
        )

    def on(self, device: torch.device) -> "Pair":
        """The same with the UNet's layers on a device."""
        return Pair(
            *(
                {
                    module: replace(layer, down=layer.down.to(device), up=layer.up.to(device))
                    if module.part == "unet"
                    else layer
                    for module, layer in layers.items()
                }
                for layers in (self.subject, self.style)
            )
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Layers of text encoders, as `role part.path`."""
        return tuple(
            f"{role} {module.part}.{module.path}"
            for role, layers in (("subject", self.subject), ("style", self.style))
            for module in sorted(layers)
            if module.part != "unet"
        )


@dataclass(frozen=True, eq=False)
class Coefficients:
    """m_c and m_s of the layers that have any; a layer without is taken as it is."""

    subject: Columns
    style: Columns
    projection: float = 0.0
    """NP-LoRA's k: how much less of what the style reads the subject reads, in every merged layer."""
    elementwise: Elementwise | None = None
    """How TIES and DARE make the merged layers."""

    def movement(self) -> float:
        """max |m − 1|, where a projection is a factor of 1 − k; of TIES and DARE the share that they leave out."""
        vectors = [*self.subject.values(), *self.style.values()]
        left_out = 1 - self.elementwise.density if self.elementwise else 0.0
        return max([self.projection, left_out, *(float((vector - 1).abs().max()) for vector in vectors)])

    def movement_by_block(self) -> dict[str, tuple[float, float]]:
        """Mean |m − 1| of the subject's and the style's coefficients in each block of the UNet that has any."""
        blocks: dict[str, list[Module]] = {}
        for module in sorted(self.subject.keys() & self.style.keys()):
            blocks.setdefault(block_of(module), []).append(module)
        return {
            block: (
                _moved(self.subject[module] for module in modules),
                _moved(self.style[module] for module in modules),
            )
            for block, modules in blocks.items()
        }


def block_of(module: Module) -> str:
    """The block of the UNet that holds a layer, such as `up_blocks.1` or `mid_block`."""
    first, second, *_ = module.path.split(".")
    return f"{first}.{second}" if second.isdecimal() else first


def _moved(columns: Iterable[Float[Tensor, " in"]]) -> float:
    return float((torch.cat(list(columns)).double() - 1).abs().mean())


DIRECT = Coefficients({}, {})
"""The direct merge: every layer as it is."""


def is_attention(module: Module) -> bool:
    """Whether it is one of the paper's layers."""
    return module.part == "unet" and _ATTENTION.fullmatch(module.path) is not None


def scale_columns(
    down: Float[Tensor, "rank in *kernel"], factors: Float[Tensor, " in"]
) -> Float[Tensor, "rank in *kernel"]:
    """A · diag(m): every input feature by its own factor."""
    return down * factors.to(down.device).view(1, -1, *(1 for _ in down.shape[2:]))


def scaled_factors(layer: Layer, factors: Float[Tensor, " in"] | None) -> tuple[Tensor, Tensor]:
    """A · diag(m) and scale · B of one adapter's layer."""
    down = layer.down if factors is None else scale_columns(layer.down, factors)
    return down, layer.scale * layer.up


def weakened(down: Float[Tensor, "rank in *kernel"], style: Layer, share: float) -> Float[Tensor, "rank in *kernel"]:
    """A (I − k Q Qᵀ), where Q spans what the style's change reads: the rows of B_s A_s, whatever its factors.

    In double precision, so that hardly a bit in single depends on the way in which a machine finds Q.
    """
    _, triangle = torch.linalg.qr(style.scale * style.up.double())
    _, values, directions = torch.linalg.svd(triangle @ style.down.flatten(1).double(), full_matrices=False)
    read: Tensor = directions[values > _ROUNDING * values[0]]
    rows = down.flatten(1).double()
    return (rows - share * (rows @ read.T) @ read).to(down.dtype).view_as(down)


def stacked(
    parts: list[tuple[Float[Tensor, "rank in *kernel"], Float[Tensor, "out rank"]]],
) -> tuple[Float[Tensor, "ranks in *kernel"], Float[Tensor, "out ranks"]]:
    """[A_c ; A_s] and [B_c, B_s]: the sum of two low-rank changes is one, of both ranks together."""
    downs = [down for down, _ in parts]
    if len({down.dim() for down in downs}) > 1:  # a convolution of one pixel, written as a matrix by one of the two
        downs = [down.flatten(1) for down in downs]
    return torch.cat(downs), torch.cat([up for _, up in parts], dim=1)


def merged_layers(pair: Pair, coefficients: Coefficients, style_strength: float = 1.0) -> dict[Module, Layer]:
    """The merge as one LoRA of rank r_c + r_s, alpha = rank.

    `style_strength` is the paper's w_s. It is the strength of the style's part alone: what the merge did to the
    subject's part, by coefficients, a projection or an elementwise rule, stays as it is, down to a strength of 0.
    """
    layers: dict[Module, Layer] = {}
    merged, kept = set(pair.merged), coefficients.elementwise
    for module in pair.unet:
        if kept and module in merged:
            layers[module], _ = combined_layer(kept, module, pair.subject[module], pair.style[module], style_strength)
            continue
        parts = []
        if module in pair.subject:
            down, up = scaled_factors(pair.subject[module], coefficients.subject.get(module))
            if coefficients.projection and module in merged:
                down = weakened(down, pair.style[module], coefficients.projection)
            parts.append((down, up))
        if module in pair.style:
            down, up = scaled_factors(pair.style[module], coefficients.style.get(module))
            parts.append((down * style_strength, up))
        layers[module] = Layer(*stacked(parts), scale=1.0)
    return layers

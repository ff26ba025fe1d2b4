"""What the attention layers of an adapted model are given: the uncentred second moments of their inputs.

Those of an adapter alone are computed once and serve its pairs with every partner. They stay in memory and never go to
disk: an adapter of SDXL has 1.7 GB of them, which a few forward passes make again.
"""

from collections.abc import Collection, Mapping, MutableMapping
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .adapter import Layer
from .backbone import Backbone, Forward, forward_with
from .calibration import Calibrated, predict_some
from .failure import Failure
from .keys import Module
from .memory import in_batches
from .pair import is_attention

Moments = Mapping[Module, Float[Tensor, "in in"]]
"""The mean of x xᵀ over all tokens of all samples, on the CPU; modules with one input share one tensor."""

_KEPT_BYTES = 8 << 30
"""Five adapters of SDXL."""
_KEPT: WeakKeyDictionary[Backbone, dict[str, Moments]] = WeakKeyDictionary()
"""By base and calibration id, the one asked for last at the end."""


def adapter_moments(backbone: Backbone, layers: Mapping[Module, Layer], calibrated: Calibrated) -> Moments:
    """Those of an adapter's attention layers in the model under that adapter alone, on its own samples."""
    kept = _KEPT.setdefault(backbone, {})
    moments = kept.pop(calibrated.calibration_id, None)
    if moments is None:
        unet = {module: layer for module, layer in layers.items() if module.part == "unet"}
        moments = input_moments(backbone, unet, calibrated, [module for module in unet if is_attention(module)])
    kept[calibrated.calibration_id] = moments
    while len(kept) > 1 and _size_bytes(kept.values()) > _KEPT_BYTES:
        del kept[next(iter(kept))]
    return moments


def _size_bytes(several: Collection[Moments]) -> int:
    distinct = {id(moment): moment.nbytes for moments in several for moment in moments.values()}
    return sum(distinct.values())


def input_moments(
    backbone: Backbone, layers: Mapping[Module, Layer], calibrated: Calibrated, wanted: Collection[Module]
) -> Moments:
    """Those of the wanted modules in the model with these layers, on the samples of a calibration."""
    forwards = {module: forward_with(layer, backbone) for module, layer in layers.items()}

    def watch(some: slice) -> _Recorder:
        recorder = _Recorder(torch.promote_types(torch.float32, backbone.dtype))
        watched = {module: recorder.recording(module, forwards[module]) for module in wanted}
        with backbone.replaced(forwards | watched):
            predict_some(backbone, calibrated.noisy[some], calibrated.timesteps[some], calibrated.condition)
        return recorder

    samples, firsts = len(calibrated.noisy), {}
    totals: dict[Module, Float[Tensor, "in in"]] = {}
    for recorder in in_batches(backbone.room.predicted, samples, watch):
        firsts = recorder.firsts
        for module, total in recorder.totals.items():
            totals[module] = totals[module] + total if module in totals else total
    means = {module: (total / samples).cpu() for module, total in totals.items()}
    for module, mean in sorted(means.items()):
        if not mean.isfinite().all():
            fact = (
                f"Under calibration {calibrated.calibration_id[:12]} the inputs of {module.path} are NaN or infinite."
            )
            raise Failure("NON_FINITE_INPUTS", fact, "compute in float32 or bfloat16, or leave the LoRA out.")
    return {module: means[first] for module, first in firsts.items()}


class _Recorder:
    """Takes down x xᵀ while the model runs once, once for modules that are given the very same tensor.

    Queries, keys and values of one self-attention are, and so are keys and values of all cross-attentions.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._seen: MutableMapping[Tensor, Module] = WeakTensorKeyDictionary()
        self.firsts: dict[Module, Module] = {}
        """Each module's first companion in its input."""
        self.totals: dict[Module, Float[Tensor, "in in"]] = {}
        """Of such first modules: a mean over tokens, a sum over the samples of one batch."""

    def recording(self, name: Module, forward: Forward) -> Forward:
        """The forward pass, which now takes note of its input."""

        def record(module: nn.Module, inputs: Float[Tensor, "samples tokens in"]) -> Tensor:
            first = self.firsts[name] = self._seen.setdefault(inputs, name)
            if first == name:
                tokens = inputs.flatten(0, 1).to(self._dtype)
                self.totals[name] = tokens.T @ tokens / inputs.shape[1]
            return forward(module, inputs)

        return record

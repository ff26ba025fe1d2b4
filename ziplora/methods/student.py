"""The merged model in training: what it predicts, and the gradient of its coefficients.

Base and adapters are frozen, so that gradients flow through activations alone. The samples of all calibrations go
through the model in one batch, or in a thriftier way where there is no room.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ziplora.backbone import Condition, Forward, forward_with, linear_with_layer
from ziplora.calibration import Calibrated, repeated
from ziplora.keys import Module
from ziplora.memory import Thrift
from ziplora.pair import DIRECT, Coefficients, Pair, merged_layers, scaled_factors

from .solution import Problem

Rows = Sequence[Int[Tensor, " some"]]
"""Which samples a step sees, for each calibration."""


class _LinearWithLora(torch.autograd.Function):
    """W x + b + B (A x), where x and A are to have gradients.

    What autograd would do, with either sum added in the matrix product itself and nothing kept for the way back but x.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, linear: nn.Linear, down: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, linear.weight, down, up)
        return linear_with_layer(linear, inputs, down, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        inputs, weight, down, up = ctx.saved_tensors
        of_outputs = gradients[0].flatten(0, -2)
        of_inner = of_outputs @ up
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = (of_outputs @ weight).addmm_(of_inner, down).view_as(inputs)
        return of_inputs, None, of_inner.T @ inputs.flatten(0, -2), None


@dataclass(frozen=True, eq=False)
class _Alike:
    """Merged layers whose factors have the same shapes: their columns are scaled all at once."""

    indices: tuple[int, ...]
    subject: Float[Tensor, "layers rank in"]
    style: Float[Tensor, "layers rank in"]


class Student:
    """The merged model in training: all coefficients in one vector, m_c of every layer and then m_s of every layer."""

    def __init__(self, problem: Problem, start: Coefficients) -> None:
        pair, self._backbone = problem.pair, problem.backbone
        device = self._backbone.device
        self.modules = pair.merged
        self.widths = [pair.subject[module].down.shape[1] for module in self.modules]
        dtype = torch.promote_types(torch.float32, self._backbone.dtype)
        self._start = torch.cat(
            [
                columns.get(module, torch.ones(width))
                for columns in (start.subject, start.style)
                for module, width in zip(self.modules, self.widths, strict=True)
            ]
        ).to(device, dtype)
        self.flat = self._start.clone().requires_grad_()
        layer_of_column = torch.repeat_interleave(torch.arange(len(self.widths)), torch.tensor(self.widths))
        self._layer_of_column = layer_of_column.to(device)
        self._piecewise = False
        sums = merged_layers(pair.only(pair.passed_through), DIRECT)
        self._forwards = {module: forward_with(sums[module], self._backbone) for module in sums}
        self._downs: dict[int, Float[Tensor, "ranks in"]] = {}
        """[A_c diag(m_c) ; A_s diag(m_s)] of every merged layer, as the coefficients are now."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, module in enumerate(self.modules):
            sides = [scaled_factors(layers[module], None) for layers in (pair.subject, pair.style)]
            up = torch.cat([up for _, up in sides], dim=1).to(device, self._backbone.dtype)
            self._forwards[module] = self._forward(index, up)
            alike.setdefault((self.widths[index], *(len(down) for down, _ in sides)), []).append(index)
        self._alike = [self._gathered(pair, indices) for indices in alike.values()]

    def _forward(self, index: int, up: Float[Tensor, "out ranks"]) -> Forward:
        def forward(module: nn.Module, inputs: Tensor) -> Tensor:
            outputs: Tensor = _LinearWithLora.apply(inputs, module, self._downs[index], up)  # type: ignore[no-untyped-call]
            return outputs

        return forward

    def _gathered(self, pair: Pair, indices: list[int]) -> _Alike:
        subject, style = (
            torch.stack([layers[self.modules[index]].down.flatten(1) for index in indices]).to(self._backbone.device)
            for layers in (pair.subject, pair.style)
        )
        return _Alike(tuple(indices), subject, style)

    def refresh(self) -> None:
        """Let the model see the coefficients as they are now; before every forward pass."""
        vectors, count = torch.split(self.flat, self.widths * 2), len(self.modules)
        for alike in self._alike:
            of_subject = torch.stack([vectors[index] for index in alike.indices])[:, None]
            of_style = torch.stack([vectors[count + index] for index in alike.indices])[:, None]
            downs = torch.cat((alike.subject * of_subject, alike.style * of_style), dim=1).to(self._backbone.dtype)
            self._downs.update(zip(alike.indices, downs.unbind(), strict=True))

    def installed(self) -> AbstractContextManager[None]:
        """The backbone as this model; afterwards exactly as before."""
        return self._backbone.replaced(self._forwards)

    @contextmanager
    def sparing(self, thrift: Thrift) -> Iterator[None]:
        """The student in a step, forward and backward, that saves memory in this way."""
        self._piecewise = thrift is Thrift.PIECEWISE
        try:
            with nullcontext() if thrift is Thrift.NONE else self._backbone.checkpointed():
                yield
        finally:
            self._piecewise = False
            self._downs.clear()  # and with them what autograd knows of this step

    def predict(self, calibrations: Sequence[Calibrated], rows: Rows) -> tuple[Float[Tensor, "some c h w"], ...]:
        """The merged model's predictions of some samples of each calibration, in one batch unless that is too much."""
        device = self._backbone.device
        shown = list(zip(calibrations, rows, strict=True))
        told = [repeated(one.condition, len(chosen), device) for one, chosen in shown]
        condition = Condition(
            torch.cat([part.hidden for part in told]),
            torch.cat([part.pooled for part in told]),
            torch.cat([part.time_ids for part in told]),
        )
        noisy = torch.cat([one.noisy[chosen] for one, chosen in shown]).to(device)
        timesteps = torch.cat([one.timesteps[chosen] for one, chosen in shown]).to(device)
        self.refresh()
        if self._piecewise:
            predicted = torch.cat([self._predict_one(noisy, timesteps, condition, row) for row in range(len(noisy))])
        else:
            predicted = self._backbone.predict(noisy, timesteps, condition)
        return torch.split(predicted, [len(chosen) for chosen in rows])

    def _predict_one(
        self, noisy: Float[Tensor, "all c h w"], timesteps: Int[Tensor, " all"], condition: Condition, row: int
    ) -> Float[Tensor, "1 c h w"]:
        """One sample's prediction, of which the backward pass finds nothing kept: it holds one sample at a time."""
        one = slice(row, row + 1)
        told = Condition(condition.hidden[one], condition.pooled[one], condition.time_ids[one])
        predicted: Tensor = checkpoint(
            self._backbone.predict, noisy[one], timesteps[one], told, use_reentrant=False, preserve_rng_state=False
        )
        return predicted

    def per_layer(self, columns: Float[Tensor, " columns"]) -> Float[Tensor, " layers"]:
        """Sums of one side's columns over every layer."""
        return columns.new_zeros(len(self.widths)).index_add(0, self._layer_of_column, columns)

    def movement(self) -> Float[Tensor, ""]:
        """The largest distance of a coefficient from where it started."""
        return (self.flat.detach() - self._start).abs().max()

    def coefficients(self) -> Coefficients:
        """What was learned so far, on the CPU."""
        vectors = [vector.clone() for vector in torch.split(self.flat.detach().cpu(), self.widths * 2)]
        count = len(self.modules)
        subject: Mapping[Module, Tensor] = dict(zip(self.modules, vectors[:count], strict=True))
        return Coefficients(subject, dict(zip(self.modules, vectors[count:], strict=True)))

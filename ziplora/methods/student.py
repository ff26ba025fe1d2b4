"""The merged model in training: what the methods share that learn coefficients by gradient steps.

The targets are cached predictions; base and adapters are frozen, so that gradients flow through activations alone. The
samples of all calibrations go through the merged model in one batch, or in a thriftier way where there is no room.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ziplora.backbone import Branch, Condition, layer_branch, low_rank
from ziplora.calibration import Calibrated, repeated
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.memory import Thrift
from ziplora.pair import DIRECT, Coefficients, merged_layers, scaled_factors, stacked
from ziplora.recipe import content_id

from .solution import Problem, is_number, refuse_standstill

_EXPLODED = 20.0
_CURVE_POINTS = 10

Rows = Sequence[Int[Tensor, " some"]]
"""Which samples a step sees, for each calibration."""


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
        self._vectors: tuple[Tensor, ...] = ()
        self._piecewise = False
        sums = merged_layers(pair.only(pair.passed_through), DIRECT)
        self.branches: dict[Module, Branch] = {module: layer_branch(sums[module], device) for module in sums}
        for index, module in enumerate(self.modules):
            sides = [scaled_factors(layers[module], None) for layers in (pair.subject, pair.style)]
            factors = [(down.flatten(1).to(device), up.to(device, self._backbone.dtype)) for down, up in sides]
            self.branches[module] = self._branch(index, factors)

    def _branch(self, index: int, factors: list[tuple[Tensor, Tensor]]) -> Branch:
        """B_c A_c (m_c ∘ x) + B_s A_s (m_s ∘ x), with the coefficients multiplied into the small A's."""
        (down_subject, _), (down_style, _) = factors
        _, up = stacked(factors)

        def branch(module: nn.Module, inputs: Tensor) -> Tensor:
            subject, style = self._vectors[index], self._vectors[len(self.modules) + index]
            return low_rank(module, inputs, torch.cat((down_subject * subject, down_style * style)), up)

        return branch

    def refresh(self) -> None:
        """Let the branches see the vector as it is now; before every forward pass."""
        self._vectors = torch.split(self.flat, self.widths * 2)

    @contextmanager
    def sparing(self, thrift: Thrift) -> Iterator[None]:
        """The student in a step, forward and backward, that saves memory in this way."""
        self._piecewise = thrift is Thrift.PIECEWISE
        try:
            with nullcontext() if thrift is Thrift.NONE else self._backbone.checkpointed():
                yield
        finally:
            self._piecewise = False

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
        predicted: Tensor = checkpoint(self._backbone.predict, noisy[one], timesteps[one], told, use_reentrant=False)
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


def row_schedule(calibrated: Calibrated, steps: int, per_step: int, seed: int) -> Int[Tensor, "steps per_step"]:
    """Which samples each step sees: one shuffled pass over all of them after the other.

    The order depends on the adapter, not on its role, so that swapping roles swaps the result.
    """
    generator = torch.Generator().manual_seed(int(content_id([seed, calibrated.calibration_id])[:15], 16))
    samples = len(calibrated.noisy)
    passes = -(-steps * per_step // samples)
    rows = torch.cat([torch.randperm(samples, generator=generator) for _ in range(passes)])
    return rows[: steps * per_step].view(steps, per_step)


def squared_error(
    predicted: Float[Tensor, "some c h w"], calibrated: Calibrated, rows: Int[Tensor, " some"]
) -> Float[Tensor, ""]:
    """‖ε_m − ε_teacher‖² per number."""
    teacher = calibrated.teacher[rows].to(predicted.device)
    return (predicted.to(teacher.dtype) - teacher).square().mean()


@dataclass(frozen=True)
class Descent:
    """How a method goes down its objective, from where and with what words about it."""

    steps: int
    learning_rate: float
    samples_per_step: int
    """Of each calibration."""
    start: Coefficients = DIRECT
    start_name: str = "the direct merge"
    default_rate: float = 0.01
    """What is recommended when it goes astray."""
    decays: bool = False
    """Whether the learning rate falls to nothing, along a straight line."""

    def share_at(self, step: int) -> float:
        """What is left of the learning rate."""
        return 1 - step / self.steps if self.decays else 1.0


def descend(
    problem: Problem,
    calibrations: Sequence[Calibrated],
    descent: Descent,
    terms: Callable[[Student, Rows], tuple[Float[Tensor, ""], ...]],
    weights: Sequence[float],
) -> tuple[Coefficients, tuple[tuple[float, ...], ...]]:
    """The coefficients after all steps of Adam, and (step, terms) of some; raises Failure when they are none."""
    student = Student(problem, descent.start)
    optimiser = torch.optim.Adam([student.flat], lr=descent.learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, descent.share_at)
    steps, per_step = descent.steps, descent.samples_per_step
    schedules = [row_schedule(one, steps, per_step, problem.seed) for one in calibrations]
    curve = []

    def look(rows: Rows, thrift: Thrift) -> tuple[Float[Tensor, ""], ...]:
        """The terms on some samples, and their gradient in the student; it may be begun and given up."""
        optimiser.zero_grad()
        with student.sparing(thrift):
            found = terms(student, rows)
            torch.stack([weight * term for weight, term in zip(weights, found, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
        return tuple(term.detach() for term in found)

    with problem.backbone.branched(student.branches):
        for step in range(steps):
            found = problem.backbone.room.trained.do(partial(look, [schedule[step] for schedule in schedules]))
            optimiser.step()
            rate.step()
            *seen, moved = torch.stack([*found, student.movement()]).tolist()
            _refuse_divergence(step + 1, sum(seen), moved, descent)
            if step % max(1, steps // _CURVE_POINTS) == 0 or step == steps - 1:
                curve.append((step, *seen))
            problem.progress(step + 1, steps)
    refuse_standstill(
        float(student.movement()),
        f"After {steps} steps at learning rate {descent.learning_rate:g}",
        descent.start_name,
        "Adam moves a coefficient by about the learning rate in a step: "
        f"use {descent.default_rate:g}, not the 5e-5 that LoRAs train at.",
    )
    return student.coefficients(), tuple(curve)


def _refuse_divergence(step: int, loss: float, movement: float, descent: Descent) -> None:
    if is_number(loss) and movement <= _EXPLODED:
        return
    trouble = f"a coefficient had moved by {movement:.3g}" if is_number(loss) else f"the loss was {loss}"
    fact = f"At step {step} of {descent.steps}, at learning rate {descent.learning_rate:g}, {trouble}."
    raise Failure("MERGE_DIVERGED", fact, f"lower the learning rate; {descent.default_rate:g} is the default.")

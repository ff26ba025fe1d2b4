"""How coefficients are learned by gradient steps: what the methods share that do.

The targets are cached predictions. On a CUDA device every step after the first is one graph, whose thousands of small
kernels are launched at once: from Python, one by one, they take longer to launch than to run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ziplora.calibration import Calibrated
from ziplora.failure import Failure
from ziplora.memory import Thrift
from ziplora.pair import DIRECT, Coefficients
from ziplora.recipe import content_id

from .solution import Problem, is_number, refuse_standstill
from .student import Rows, Student

_EXPLODED = 20.0
_CURVE_POINTS = 10

Terms = tuple[Float[Tensor, ""], ...]
"""What an objective is the weighted sum of."""
Curve = tuple[tuple[float, ...], ...]
"""Some steps, each with the terms that it saw."""
Objective = Callable[[Student, Sequence[Calibrated], Rows], Terms]


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


class _Graph:
    """A step's terms and gradient as one CUDA graph, which is launched again with other samples."""

    def __init__(self, step: Callable[[Rows], Terms], rows: Rows) -> None:
        self._rows = [chosen.clone() for chosen in rows]
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):  # others may go on
            self._terms = step(self._rows)

    def __call__(self, rows: Rows) -> Terms:
        for own, chosen in zip(self._rows, rows, strict=True):
            own.copy_(chosen)
        self._graph.replay()
        return self._terms


@contextmanager
def _on_one_stream(device: torch.device) -> Iterator[None]:
    """Everything on a stream of its own: no graph is captured on the default one, nor with what autograd left there."""
    if device.type != "cuda":
        yield
        return
    outside, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)


def descend(
    problem: Problem,
    calibrations: Sequence[Calibrated],
    descent: Descent,
    objective: Objective,
    weights: Sequence[float],
) -> tuple[Coefficients, Curve]:
    """The coefficients after all steps of Adam, and what it saw on the way; raises Failure when they are none."""
    student, device, room = Student(problem, descent.start), problem.backbone.device, problem.backbone.room
    optimiser = torch.optim.Adam([student.flat], lr=descent.learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, descent.share_at)
    steps, per_step = descent.steps, descent.samples_per_step
    shown = [one.on(device) for one in calibrations]
    schedules = [row_schedule(one, steps, per_step, problem.seed).to(device) for one in calibrations]
    curve = []

    def look(rows: Rows, thrift: Thrift) -> Terms:
        """The terms on some samples, and their gradient in the student; it may be begun and given up."""
        with student.sparing(thrift):
            terms = objective(student, shown, rows)
            loss = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
            (student.flat.grad,) = torch.autograd.grad(loss, student.flat)
        return tuple(term.detach() for term in terms)

    def look_somehow(rows: Rows) -> Terms:
        return room.trained.do(partial(look, rows))

    with _on_one_stream(device), student.installed():
        take: Callable[[Rows], Terms] = look_somehow
        for step in range(steps):
            rows = [schedule[step] for schedule in schedules]
            if step == 1 and device.type == "cuda":
                take = _graph_or(take, partial(look, thrift=room.trained.chosen), rows)
            terms = take(rows)
            optimiser.step()
            rate.step()
            *seen, moved = torch.stack([*terms, student.movement()]).tolist()
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


def _graph_or(plain: Callable[[Rows], Terms], step: Callable[[Rows], Terms], rows: Rows) -> Callable[[Rows], Terms]:
    """The step as a graph, or as it was where there is no room for one."""
    try:
        return _Graph(step, rows)
    except torch.OutOfMemoryError:
        return plain


def _refuse_divergence(step: int, loss: float, movement: float, descent: Descent) -> None:
    if is_number(loss) and movement <= _EXPLODED:
        return
    trouble = f"a coefficient had moved by {movement:.3g}" if is_number(loss) else f"the loss was {loss}"
    fact = f"At step {step} of {descent.steps}, at learning rate {descent.learning_rate:g}, {trouble}."
    raise Failure("MERGE_DIVERGED", fact, f"lower the learning rate; {descent.default_rate:g} is the default.")

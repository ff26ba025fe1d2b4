"""ZipLoRA (arXiv 2311.13600): learn how much of each input feature either adapter may change.

The targets are the adapters' own cached predictions; base and adapters are frozen, so that gradients flow through
activations alone. Subject and style samples go through the merged model in one batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ziplora.backbone import Branch, Condition, layer_branch, low_rank
from ziplora.calibration import Calibrated, repeated
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.pair import DIRECT, Coefficients, merged_layers, scaled_factors, stacked
from ziplora.recipe import Losses, content_id

from . import ziplora_lsq
from .solution import (
    Problem,
    Solution,
    is_number,
    refuse_standstill,
    refuse_strangers,
    relative_errors,
    require,
    unheard,
)

_STARTS = {"ones": "the direct merge", "lsq": "that of ziplora-lsq"}
_EXPLODED = 20.0
_CURVE_POINTS = 10
_TINY = 1e-12


@dataclass(frozen=True)
class Parameters:
    """The paper's settings, but for the third term and the balance."""

    steps: int = 100
    learning_rate: float = 0.01
    third_term: str = "cosine"
    """How a layer's |m_c · m_s| is read: `literal` as printed, its `mean` over columns, or the `cosine` of the two."""
    third_term_weight: float = 0.01
    balanced: bool = True
    """Whether each side's loss is divided by what its own adapter changes, so that the stronger drowns no one."""
    samples_per_step: int = 2
    """How many samples of each side a step sees."""
    start: str = "ones"
    """Where the steps begin: `ones`, the direct merge, or `lsq`, what ziplora-lsq finds by its own defaults."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", f"is {self.steps}, less than 1")
        require(self.samples_per_step >= 1, "samples_per_step", f"is {self.samples_per_step}, less than 1")
        require(is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", "is not above 0")
        require(is_number(self.third_term_weight) and self.third_term_weight >= 0, "third_term_weight", "is below 0")
        forms = ("cosine", "mean", "literal")
        require(self.third_term in forms, "third_term", f"is {self.third_term!r}, not one of {', '.join(forms)}")
        require(self.start in _STARTS, "start", f"is {self.start!r}, not one of {', '.join(_STARTS)}")


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

    def predict(
        self, sides: tuple[Calibrated, Calibrated], rows: tuple[Int[Tensor, " some"], Int[Tensor, " some"]]
    ) -> tuple[Tensor, Tensor]:
        """The merged model's predictions of some samples of both sides, in one batch."""
        device = self._backbone.device
        told = [repeated(side.condition, len(chosen), device) for side, chosen in zip(sides, rows, strict=True)]
        condition = Condition(
            torch.cat([part.hidden for part in told]),
            torch.cat([part.pooled for part in told]),
            torch.cat([part.time_ids for part in told]),
        )
        noisy = torch.cat([side.noisy[chosen] for side, chosen in zip(sides, rows, strict=True)]).to(device)
        timesteps = torch.cat([side.timesteps[chosen] for side, chosen in zip(sides, rows, strict=True)]).to(device)
        self.refresh()
        predicted = self._backbone.predict(noisy, timesteps, condition)
        subject, style = torch.split(predicted, [len(chosen) for chosen in rows])
        return subject, style

    def third_term(self, form: str) -> Float[Tensor, ""]:
        """Σ over layers of |m_c · m_s|, in one of its readings."""
        subject, style = self.flat.chunk(2)
        together = self._per_layer(subject * style)
        if form == "mean":
            together = together / torch.tensor(self.widths, device=together.device)
        elif form == "cosine":
            lengths = self._per_layer(subject.square()) * self._per_layer(style.square())
            together = together / lengths.clamp(min=_TINY).sqrt()
        return together.abs().sum()

    def _per_layer(self, columns: Float[Tensor, " columns"]) -> Float[Tensor, " layers"]:
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


def side_loss(
    predicted: Float[Tensor, "some c h w"], calibrated: Calibrated, rows: Int[Tensor, " some"], balanced: bool
) -> Float[Tensor, ""]:
    """‖ε_m − ε_teacher‖² per number, divided by the teacher's effect when balanced."""
    teacher = calibrated.teacher[rows].to(predicted.device)
    error = (predicted.to(teacher.dtype) - teacher).square().mean()
    return error / calibrated.effect if balanced else error


def solve(problem: Problem, parameters: Parameters) -> Solution:
    """The coefficients after all steps of Adam, or a failure that says why there are none."""
    refuse_strangers(problem.pair)
    first = relative_errors(problem, DIRECT)
    student = Student(problem, _start(problem, parameters))
    optimiser = torch.optim.Adam([student.flat], lr=parameters.learning_rate)
    sides = problem.calibrations
    steps, per_step = parameters.steps, parameters.samples_per_step
    schedules = [row_schedule(side, steps, per_step, problem.seed) for side in sides]
    curve = []
    with problem.backbone.branched(student.branches):
        for step in range(steps):
            losses = objective(student, sides, (schedules[0][step], schedules[1][step]), parameters)
            optimiser.zero_grad()
            (losses[0] + losses[1] + parameters.third_term_weight * losses[2]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            subject, style, third, moved = _observed(student, losses)
            _refuse_divergence(step + 1, subject + style + third, moved, parameters)
            if step % max(1, steps // _CURVE_POINTS) == 0 or step == steps - 1:
                curve.append((step, subject, style, third))
            problem.progress(step + 1, steps)
    refuse_standstill(
        float(student.movement()),
        f"After {steps} steps at learning rate {parameters.learning_rate:g}",
        _STARTS[parameters.start],
        "Adam moves a coefficient by about the learning rate in a step: use 0.01, not the 5e-5 that LoRAs train at.",
    )
    coefficients = student.coefficients()
    return Solution(coefficients, Losses(*first, *relative_errors(problem, coefficients), curve=tuple(curve)))


def _start(problem: Problem, parameters: Parameters) -> Coefficients:
    if parameters.start == "ones":
        return DIRECT
    return ziplora_lsq.least_squares(replace(problem, progress=unheard), ziplora_lsq.Parameters())


def objective(
    student: Student, sides: tuple[Calibrated, Calibrated], rows: tuple[Tensor, Tensor], parameters: Parameters
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The three terms of the paper's equation 7 on some samples: subject, style, and what keeps the two apart."""
    predicted = student.predict(sides, rows)
    subject, style = (
        side_loss(side, calibrated, chosen, parameters.balanced)
        for side, calibrated, chosen in zip(predicted, sides, rows, strict=True)
    )
    return subject, style, student.third_term(parameters.third_term)


def _observed(student: Student, losses: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float, float, float]:
    subject, style, third, movement = torch.stack([*(loss.detach() for loss in losses), student.movement()]).tolist()
    return subject, style, third, movement


def _refuse_divergence(step: int, loss: float, movement: float, parameters: Parameters) -> None:
    if is_number(loss) and movement <= _EXPLODED:
        return
    trouble = f"a coefficient had moved by {movement:.3g}" if is_number(loss) else f"the loss was {loss}"
    fact = f"At step {step} of {parameters.steps}, at learning rate {parameters.learning_rate:g}, {trouble}."
    raise Failure("MERGE_DIVERGED", fact, "lower the learning rate; 0.01 is the paper's.")

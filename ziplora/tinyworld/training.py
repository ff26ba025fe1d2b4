"""One resumable training loop for every model of the tiny world.

The batch of step i depends on (seed, i) alone and the loop's state is written to disk as safetensors every
few hundred steps, so that a run that was stopped goes on where it was and ends where it would have ended.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_RECENT = 100
"""How many steps a reported loss is the mean of."""
LossOfStep = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one model is trained."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    flat_share: float = 0.5
    """Share of the steps before the rate falls to zero along a half cosine."""
    weight_decay: float = 0.01
    ema_decay: float | None = None
    """Decay of the averaged weights that the model ends with; None keeps the last weights."""
    checkpoint_every: int = 250

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        late = max(0.0, step / self.steps - self.flat_share) / (1 - self.flat_share)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * late))


@dataclass(frozen=True)
class Trained:
    """What one training took."""

    name: str
    steps: int
    seconds: float
    """Time spent in steps, summed over resumed runs."""
    loss: float
    """Mean of the last 100 steps."""
    device: str
    threads: int


class _State:
    """Everything that a stopped training needs to go on: weights, their average, AdamW's moments, and the progress."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.weights = {key: p for key, p in model.named_parameters() if p.requires_grad}
        self.average = {key: p.detach().clone() for key, p in self.weights.items()} if schedule.ema_decay else {}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.finished = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.kept_loss: float | None = None
        """The recent loss when the last checkpoint was written; None before there were enough steps."""

    def save(self, path: Path) -> None:
        kept: dict[str, Tensor] = {f"weight.{key}": p for key, p in self.weights.items()}
        kept |= {f"average.{key}": p for key, p in self.average.items()}
        # A parameter that took no part in the loss has no moments (DINOv2's mask token).
        moved = {key: self.optimizer.state[p] for key, p in self.weights.items() if p in self.optimizer.state}
        kept |= {f"first.{key}": moments["exp_avg"] for key, moments in moved.items()}
        kept |= {f"second.{key}": moments["exp_avg_sq"] for key, moments in moved.items()}
        kept["progress"] = torch.tensor([self.finished, self.seconds], dtype=torch.float64)
        kept["losses"] = torch.tensor(self.losses[-_RECENT:], dtype=torch.float64)
        unfinished = path.with_suffix(".part")
        save_file({key: tensor.detach().contiguous().clone() for key, tensor in kept.items()}, unfinished)
        unfinished.replace(path)

    @torch.no_grad()
    def load(self, path: Path, device: torch.device) -> None:
        kept = load_file(path, device=str(device))
        finished, self.seconds = kept["progress"].tolist()
        self.finished = int(finished)
        self.losses = kept["losses"].tolist()
        self.kept_loss = self.recent_loss() if len(self.losses) >= _RECENT else None
        for key, parameter in self.weights.items():
            parameter.copy_(kept[f"weight.{key}"])
            if self.average:
                self.average[key].copy_(kept[f"average.{key}"])
            if f"first.{key}" in kept:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.finished)),
                    "exp_avg": kept[f"first.{key}"],
                    "exp_avg_sq": kept[f"second.{key}"],
                }

    def step(self, loss: Tensor, schedule: Schedule) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(self.finished)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        if schedule.ema_decay:
            decay = min(schedule.ema_decay, (self.finished + 1) / (self.finished + 10))
            latest = [p.detach() for p in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), latest, 1 - decay)
        self.finished += 1
        self.losses.append(loss.item())

    def refuse_divergence(self, name: str) -> None:
        """Stop before a checkpoint of a broken training replaces a sound one: a doubled loss does not come back."""
        if self.kept_loss is not None and not self.recent_loss() <= self.kept_loss + abs(self.kept_loss):
            raise ArithmeticError(
                f"{name} diverged: its loss is {self.recent_loss():.3g} at step {self.finished}, and was "
                f"{self.kept_loss:.3g} at the last checkpoint. Lower its learning rate and start it again."
            )
        self.kept_loss = self.recent_loss() if len(self.losses) >= _RECENT else None

    def recent_loss(self) -> float:
        recent = self.losses[-_RECENT:]
        return sum(recent) / len(recent) if recent else math.nan

    @torch.no_grad()
    def take_average(self) -> None:
        for key, mean in self.average.items():
            self.weights[key].copy_(mean)


def fit(
    name: str,
    model: nn.Module,
    loss_of_step: LossOfStep,
    schedule: Schedule,
    work: Path,
    seed: int,
    device: torch.device,
) -> Trained:
    """Train the parameters of `model` that require gradients, in place; resumes from `work`/name.

    Writes one JSON line (step, loss, rate, seconds) per 20 steps to `work`/name/loss.jsonl. A training that has
    finished before gives its weights and figures back without a step.
    """
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path = folder / "state.safetensors", folder / "loss.jsonl"
    state = _State(model, schedule)
    if state_path.exists():
        state.load(state_path, device)
    _forget_after(log_path, state.finished)
    model.train()
    began = time.perf_counter() - state.seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress, log_path.open("a") as log:
        task = progress.add_task(name, total=schedule.steps, completed=state.finished, loss=state.recent_loss())
        while state.finished < schedule.steps:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + state.finished)
            state.step(loss_of_step(state.finished, generator), schedule)
            state.seconds = time.perf_counter() - began
            if state.finished % 20 == 0:
                progress.update(task, completed=state.finished, loss=state.recent_loss())
                rate = schedule.rate(state.finished - 1)
                row = {
                    "step": state.finished,
                    "loss": state.recent_loss(),
                    "rate": rate,
                    "seconds": round(state.seconds, 1),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
            if state.finished % schedule.checkpoint_every == 0 or state.finished == schedule.steps:
                state.refuse_divergence(name)
                state.save(state_path)
    state.take_average()
    model.eval()
    return Trained(
        name=name,
        steps=schedule.steps,
        seconds=round(state.seconds, 1),
        loss=state.recent_loss(),
        device=str(device),
        threads=torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
    )


def _forget_after(log_path: Path, step: int) -> None:
    """Drop the rows of steps that a stopped run had done after its last checkpoint."""
    if log_path.exists():
        rows = log_path.read_text().splitlines(keepends=True)
        log_path.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))

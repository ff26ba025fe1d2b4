"""ZipLoRA as one would write it straight from the paper: what the benchmarks hold the production method against.

Every change of a weight is dense and stays in memory, both teachers run live, and the student's weights are put
together anew for either side. It shares no code with the production method beyond the UNet's own forward pass and the
order of the samples. What it would compute once per pair it is given for free: encoded pictures and prompts, and the
effects that balance the two sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from ziplora.adapter import Layer
from ziplora.calibration import Calibrated
from ziplora.keys import Module
from ziplora.methods.descent import row_schedule

_ATTENTION_ENDS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Settings:
    """The paper's, with the production method's reading of the third term."""

    steps: int
    samples_per_step: int
    learning_rate: float = 0.01
    third_term_weight: float = 0.01
    seed: int = 0


def _dense(layers: Mapping[Module, Layer], dtype: torch.dtype) -> dict[str, Tensor]:
    """ΔW = scale · B A of every UNet layer, out × in."""
    return {
        module.path: layer.scale
        * (layer.up.to(dtype) @ layer.down.to(dtype).flatten(1)).view(-1, *layer.down.shape[1:])
        for module, layer in layers.items()
        if module.part == "unet"
    }


@dataclass(eq=False)
class DenseMerge:
    """Two LoRAs on a frozen UNet, as dense changes of its weights and one vector for each attention layer and side."""

    unet: nn.Module
    subject: dict[str, Tensor]
    style: dict[str, Tensor]
    m_subject: dict[str, Tensor]
    m_style: dict[str, Tensor]
    losses: list[tuple[float, float, float]] = field(default_factory=list)
    """Of every step: subject, style and third term, each before its weight."""

    @classmethod
    def of(cls, unet: nn.Module, subject: Mapping[Module, Layer], style: Mapping[Module, Layer]) -> "DenseMerge":
        """The direct merge, where training starts."""
        dtype = next(unet.parameters()).dtype
        on_subject, on_style = _dense(subject, dtype), _dense(style, dtype)
        both = sorted(on_subject.keys() & on_style.keys())
        widths = {name: on_subject[name].shape[1] for name in both if name.endswith(_ATTENTION_ENDS)}
        m_subject, m_style = (
            {name: torch.ones(width, dtype=dtype, requires_grad=True) for name, width in widths.items()}
            for _ in range(2)
        )
        return cls(unet, on_subject, on_style, m_subject, m_style)

    def changes(self) -> dict[str, Tensor]:
        """ΔW_m = ΔW_c · diag(m_c) + ΔW_s · diag(m_s) of every layer; the plain sum where nothing is learned."""
        changes = {}
        for name in self.subject.keys() | self.style.keys():
            scaled = [
                change[name] * columns[name] if name in columns else change[name]
                for change, columns in ((self.subject, self.m_subject), (self.style, self.m_style))
                if name in change
            ]
            changes[name] = sum(scaled[1:], scaled[0])
        return changes

    def predict(self, side: Calibrated, rows: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
        """The UNet's output with changed weights, of some of a side's samples: some × channels × height × width."""
        weights = {f"{name}.weight": self._weight(name) + change for name, change in changes.items()}
        count, told = len(rows), side.condition
        added = {"text_embeds": told.pooled.expand(count, -1), "time_ids": told.time_ids.expand(count, -1)}
        arguments = (side.noisy[rows], side.timesteps[rows], told.hidden.expand(count, -1, -1))
        output: Tensor = functional_call(self.unet, weights, arguments, {"added_cond_kwargs": added}).sample
        return output

    def _weight(self, name: str) -> Tensor:
        weight = self.unet.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight

    def _side_loss(self, side: Calibrated, rows: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = self.predict(side, rows, own)
        return (self.predict(side, rows, self.changes()) - teacher).pow(2).mean() / side.effect

    def _third_term(self) -> Tensor:
        cosines = [
            torch.cosine_similarity(m_subject, self.m_style[name], dim=0) for name, m_subject in self.m_subject.items()
        ]
        return torch.stack(cosines).abs().sum()

    def train(self, sides: Sequence[Calibrated], settings: Settings, heard: Callable[[int, int], None]) -> None:
        """All steps of Adam, each with a live subject teacher, a live style teacher and the student for either side."""
        vectors = [*self.m_subject.values(), *self.m_style.values()]
        optimiser = torch.optim.Adam(vectors, lr=settings.learning_rate)
        steps = settings.steps
        schedules = [row_schedule(side, steps, settings.samples_per_step, settings.seed) for side in sides]
        for step in range(steps):
            subject = self._side_loss(sides[0], schedules[0][step], self.subject)
            style = self._side_loss(sides[1], schedules[1][step], self.style)
            third = self._third_term()
            optimiser.zero_grad()
            (subject + style + settings.third_term_weight * third).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            self.losses.append((subject.item(), style.item(), third.item()))
            heard(step + 1, steps)

    @torch.no_grad()
    def save(self, path: Path) -> None:
        """Write the dense change of every layer, in single precision."""
        save_file({name: change.float().contiguous() for name, change in self.changes().items()}, path)

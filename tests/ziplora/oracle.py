"""ZipLoRA as one would write it on a blackboard: float64, dense changes of weights, live teachers and inputs.

It shares no code with the production method beyond the UNet's own forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ziplora.tinyworld.repository import Layers


@dataclass(frozen=True)
class Sample:
    """One noisy latent with what the UNet is told of it."""

    noisy: Tensor
    timestep: Tensor
    hidden: Tensor
    pooled: Tensor
    time_ids: Tensor


def dense(layers: Layers) -> dict[str, Tensor]:
    """The change of every weight, in full."""
    return {name: layer.alpha / layer.rank * layer.up.double() @ layer.down.double() for name, layer in layers.items()}


class Oracle:
    """A pair of LoRAs on a frozen UNet, with one vector of coefficients per side and attention layer."""

    def __init__(self, unet: nn.Module, subject: Layers, style: Layers) -> None:
        self.unet = unet
        self.weights = {name: weight.detach() for name, weight in unet.named_parameters()}
        self.subject, self.style = dense(subject), dense(style)
        self.learned = sorted(name for name in self.subject.keys() & self.style.keys() if ".attn" in name)
        widths = {name: self.subject[name].shape[1] for name in self.learned}
        self.m_subject = {name: torch.ones(width, dtype=torch.float64) for name, width in widths.items()}
        self.m_style = {name: torch.ones(width, dtype=torch.float64) for name, width in widths.items()}

    @property
    def coefficients(self) -> list[Tensor]:
        return [*self.m_subject.values(), *self.m_style.values()]

    def predict(self, sample: Sample, changes: Mapping[str, Tensor]) -> Tensor:
        changed = {f"{name}.weight": self.weights[f"{name}.weight"] + change for name, change in changes.items()}
        told = {"text_embeds": sample.pooled, "time_ids": sample.time_ids}
        arguments = (sample.noisy, sample.timestep, sample.hidden)
        output: Tensor = functional_call(
            self.unet, {**self.weights, **changed}, arguments, {"added_cond_kwargs": told}
        ).sample
        return output

    def merged(self) -> dict[str, Tensor]:
        """ΔW_m = ΔW_c · diag(m_c) + ΔW_s · diag(m_s), and the plain sum elsewhere."""
        changes = {}
        for name in self.subject.keys() | self.style.keys():
            change = torch.zeros_like(self.weights[f"{name}.weight"])
            if name in self.subject:
                change = change + self.subject[name] * self.m_subject.get(name, torch.tensor(1.0))
            if name in self.style:
                change = change + self.style[name] * self.m_style.get(name, torch.tensor(1.0))
            changes[name] = change
        return changes

    def side_loss(self, samples: Sequence[Sample], own: Mapping[str, Tensor], effect: float | None) -> Tensor:
        errors = []
        for sample in samples:
            with torch.no_grad():
                teacher = self.predict(sample, own)
            errors.append((self.predict(sample, self.merged()) - teacher).pow(2).mean())
        loss = sum(errors, torch.tensor(0.0, dtype=torch.float64)) / len(errors)
        return loss if effect is None else loss / effect

    def effect(self, samples: Sequence[Sample], own: Mapping[str, Tensor]) -> float:
        """What a LoRA changes in the base's predictions."""
        with torch.no_grad():
            changes = [(self.predict(sample, own) - self.predict(sample, {})).pow(2).mean() for sample in samples]
        return float(sum(changes)) / len(changes)

    def third_term(self, form: str) -> Tensor:
        total = torch.tensor(0.0, dtype=torch.float64)
        for name in self.learned:
            a, b = self.m_subject[name], self.m_style[name]
            product = (a * b).sum()
            if form == "mean":
                product = product / len(a)
            if form == "cosine":
                product = product / (a.norm() * b.norm())
            total = total + product.abs()
        return total

    def inputs(self, name: str, samples: Sequence[Sample], changes: Mapping[str, Tensor]) -> Tensor:
        """What a layer is given in the model with these changes, a row for every token."""
        given: list[Tensor] = []
        layer = self.unet.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].flatten(0, 1)))
        with torch.no_grad():
            for sample in samples:
                self.predict(sample, changes)
        handle.remove()
        return torch.cat(given)

    def least_squares(
        self, name: str, inputs: Sequence[Tensor], weights: Sequence[float], ridge: float
    ) -> tuple[Tensor, Tensor]:
        """Both coefficient vectors of a layer from one tall system, an equation for every number that it puts out."""
        changes = (self.subject[name], self.style[name])
        rows, targets = [], []
        for tokens, weight, own in zip(inputs, weights, changes, strict=True):
            share = (weight / len(tokens)) ** 0.5
            columns = [torch.einsum("oi,ti->toi", change, tokens).flatten(0, 1) for change in changes]
            rows.append(share * torch.cat(columns, dim=1))
            targets.append(share * (tokens @ own.T).flatten())
        mean = torch.cat(rows).pow(2).sum(0).mean()
        held = (ridge * mean).sqrt() * torch.eye(2 * changes[0].shape[1], dtype=torch.float64)
        found = torch.linalg.lstsq(torch.cat([*rows, held]), torch.cat([*targets, held.sum(1)])[:, None]).solution
        subject, style = found[:, 0].chunk(2)
        return subject, style


def adam(
    values: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, list[Tensor]], step: int, rate: float
) -> None:
    """Adam as published, on tensors in place."""
    first = state.setdefault("first", [torch.zeros_like(value) for value in values])
    second = state.setdefault("second", [torch.zeros_like(value) for value in values])
    for value, gradient, m, v in zip(values, gradients, first, second, strict=True):
        m.copy_(0.9 * m + 0.1 * gradient)
        v.copy_(0.999 * v + 0.001 * gradient**2)
        value.sub_(rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))

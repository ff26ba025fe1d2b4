"""What one adapter does, in a few noisy latents and its own predictions of them: computed once, for every partner.

The targets are the UNet's outputs with that LoRA alone. Its text-encoder layers are left out, since a merge has none.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .adapter import Layer, read
from .backbone import Backbone, Condition, Sdxl, as_bytes
from .failure import Failure
from .keys import Module
from .memory import in_batches
from .recipe import Calibration, Drawing, JointCalibration, References, sha256_of
from .store import Store, write_tensors, write_text

_LOG = logging.getLogger(__name__)
_ROUNDING = 1e-11
"""A mean square change below this part of the output is a matter of rounding."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The cached tensors of a calibration."""

    calibration_id: str
    noisy: Float[Tensor, "samples channels height width"]
    timesteps: Int[Tensor, " samples"]
    condition: Condition
    """Of the one prompt: a batch of one."""
    teacher: Float[Tensor, "samples channels height width"]
    """The UNet's output with the LoRA."""
    effects: Float[Tensor, " samples"]
    """Mean square of what the LoRA changes in the base's output."""

    @property
    def effect(self) -> float:
        """The mean over all samples: the unit of relative errors."""
        return float(self.effects.mean())

    def on(self, device: torch.device) -> "Calibrated":
        """The same with everything on a device that the UNet is shown and compared with."""
        condition = Condition(
            self.condition.hidden.to(device), self.condition.pooled.to(device), self.condition.time_ids.to(device)
        )
        return replace(
            self,
            noisy=self.noisy.to(device),
            timesteps=self.timesteps.to(device),
            condition=condition,
            teacher=self.teacher.to(device),
        )


def load_pictures(references: References, side: int) -> UInt8[NDArray[np.uint8], "count side side 3"]:
    """The reference pictures, cropped at the centre and brought to one size."""
    pictures = []
    for path in references.paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)))
    return np.stack(pictures)


def calibrate(
    request: Calibration, adapter_path: Path, backbone: Sdxl, store: Store, references: References | None = None
) -> Calibrated:
    """The calibration from the store, or computed and put there."""
    found = _stored(request, store)
    if found is not None:
        return found
    digest = references.sha256 if references else None
    if digest != request.references_sha256:
        fact = f"The reference pictures have the digest {digest}, the calibration wants {request.references_sha256}."
        raise Failure("REFERENCES_MISMATCH", fact, "plan again: the pictures have changed since.")
    layers = read(adapter_path).layers
    with torch.no_grad():
        pictures = load_pictures(references, request.side) if references else _drawn(request, layers, backbone)
    unet = {module: layer for module, layer in layers.items() if module.part == "unet"}
    calibrated = predicted(request, request.prompt, request.calibration_id, pictures, backbone, backbone.adapted(unet))
    check(calibrated, f"LoRA {request.adapter_sha256[:12]}", request.prompt)
    _write(calibrated, request, store)
    written = _stored(request, store)
    assert written is not None
    return written  # in the memory layout of every later reading, on which the last bit of a result can depend


def _drawn(
    request: Calibration, layers: Mapping[Module, Layer], backbone: Sdxl
) -> UInt8[NDArray[np.uint8], "count side side 3"]:
    """Pictures that the whole LoRA draws of its own prompt."""
    wanted = [(request.prompt, request.seed * 1_000 + number) for number in range(request.pictures)]
    with backbone.adapted(layers):
        return as_bytes(backbone.draw(wanted, Drawing(request.steps, request.guidance, request.side)))


def spread_timesteps(samples: int, levels: int, generator: torch.Generator) -> Int[Tensor, " samples"]:
    """One chance timestep in each of as many equal stretches of the noise levels."""
    places = (torch.arange(samples) + torch.rand(samples, generator=generator)) / samples
    return (places * levels).long().clamp(max=levels - 1)


@torch.no_grad()
def predicted(
    request: Calibration | JointCalibration,
    prompt: str,
    calibration_id: str,
    pictures: UInt8[NDArray[np.uint8], "count side side 3"],
    backbone: Sdxl,
    teacher_model: AbstractContextManager[None],
) -> Calibrated:
    """Noisy latents of pictures and what base and teacher predict of them by one prompt; the id decides the chances."""
    generator = torch.Generator().manual_seed(int(calibration_id[:15], 16))
    latents = backbone.encode(pictures)
    rows = torch.arange(request.samples) % len(latents)
    timesteps = spread_timesteps(request.samples, backbone.noise_levels, generator)
    # Pictures and timesteps both come in order: shuffled, so that no picture is only seen with little noise.
    timesteps = timesteps[torch.randperm(request.samples, generator=generator)]
    chosen = latents[rows]
    noisy = backbone.add_noise(chosen, torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype), timesteps)
    condition = backbone.condition(prompt, request.side)
    base = predict_all(backbone, noisy, timesteps, condition)
    with teacher_model:
        teacher = predict_all(backbone, noisy, timesteps, condition)
    effects = (teacher - base).square().flatten(1).mean(1)
    on_cpu = Condition(condition.hidden.cpu(), condition.pooled.cpu(), condition.time_ids.cpu())
    return Calibrated(calibration_id, noisy, timesteps, on_cpu, teacher, effects)


@torch.no_grad()
def predict_all(
    backbone: Backbone, noisy: Float[Tensor, "samples c h w"], timesteps: Int[Tensor, " samples"], condition: Condition
) -> Float[Tensor, "samples c h w"]:
    """The UNet's output for all samples of one prompt, on the CPU, in single precision at least."""
    outputs = in_batches(
        backbone.room.predicted,
        len(noisy),
        lambda some: predict_some(backbone, noisy[some], timesteps[some], condition).cpu(),
    )
    predicted = torch.cat(list(outputs))
    return predicted.to(torch.promote_types(predicted.dtype, torch.float32))


@torch.no_grad()
def predict_some(
    backbone: Backbone, noisy: Float[Tensor, "some c h w"], timesteps: Int[Tensor, " some"], condition: Condition
) -> Float[Tensor, "some c h w"]:
    """The UNet's output for some samples of one prompt, all at once and as it is."""
    device = backbone.device
    return backbone.predict(noisy.to(device), timesteps.to(device), repeated(condition, len(noisy), device))


def repeated(condition: Condition, count: int, device: torch.device) -> Condition:
    """The condition of one prompt for a batch, on a device."""
    return Condition(
        condition.hidden.to(device).expand(count, -1, -1),
        condition.pooled.to(device).expand(count, -1),
        condition.time_ids.to(device).expand(count, -1),
    )


def check(calibrated: Calibrated, adapter: str, prompt: str) -> None:
    """Refuse targets that are no numbers, or no others than the base's own predictions."""
    if not calibrated.teacher.isfinite().all() or not calibrated.effects.isfinite().all():
        fact = f"The base with {adapter} predicts numbers that are NaN or infinite."
        raise Failure("NON_FINITE_TEACHER", fact, "compute in float32 or bfloat16, or leave the LoRA out.")
    if calibrated.effect <= _ROUNDING * float(calibrated.teacher.square().mean()):
        fact = f"{adapter[0].upper()}{adapter[1:]} changes nothing in the base's predictions of {prompt!r}."
        raise Failure("TEACHER_WITHOUT_EFFECT", fact, "check its trigger prompt and its base model.")


def _write(calibrated: Calibrated, request: Calibration, store: Store) -> None:
    path = store.calibration(request.calibration_id)
    tensors = {
        "noisy": calibrated.noisy,
        "timesteps": calibrated.timesteps,
        "hidden": calibrated.condition.hidden,
        "pooled": calibrated.condition.pooled,
        "time_ids": calibrated.condition.time_ids,
        "teacher": calibrated.teacher,
        "effects": calibrated.effects,
    }
    write_tensors(path, tensors, {"calibration_id": request.calibration_id})
    record = {**asdict(request), "calibration_id": request.calibration_id, "tensors_sha256": sha256_of(path)}
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, sort_keys=True))


def _stored(request: Calibration, store: Store) -> Calibrated | None:
    """What lies in the store, if it is what was written there."""
    path = store.calibration(request.calibration_id)
    if not path.with_suffix(".json").is_file():
        return None
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if record["tensors_sha256"] != sha256_of(path):
            raise ValueError("its tensors are not those that were written")
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # off the mapped file
        condition = Condition(*(tensors.pop(name) for name in ("hidden", "pooled", "time_ids")))
        return Calibrated(request.calibration_id, condition=condition, **tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _LOG.warning("OBJECT_CORRUPT  Calibration %s is computed again: %s.", request.calibration_id[:12], error)
        return None

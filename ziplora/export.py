"""A merge as an adapter file that stock loaders read: diffusers' or kohya's names, the same bytes each time."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .adapter import Layer
from .backbone import Sdxl
from .failure import Failure
from .keys import Module, diffusers_key, kohya_key
from .merge import merge, merged_of
from .methods import recipe_for
from .methods.solution import Progress, unheard
from .recipe import (
    Calibration,
    Export,
    Exported,
    JointCalibration,
    MergeResult,
    Parameter,
    Recipe,
    References,
    sha256_of,
)
from .store import Store, write_tensors
from .truncation import truncated

_CONFIG_KEY = "lora_adapter_metadata"
"""Where diffusers looks for PEFT's configuration."""
_AS_STORED = Export()


def materialise(
    recipe: Recipe, subject: Path, style: Path, store: Store, out: Path, export: Export = _AS_STORED
) -> Exported:
    """Write the adapter file of a finished merge from its coefficients and its parents."""
    layers, error = merged_of(recipe, subject, style, store, export.style_strength), None
    if export.rank is not None and export.rank < _largest_rank(layers):
        layers, error = truncated(layers, export.rank)
    write_adapter(out, layers, export, provenance(recipe, export, error))
    return Exported(sha256_of(out), out.stat().st_size, _largest_rank(layers), error)


def _largest_rank(layers: Mapping[Module, Layer]) -> int:
    return max(layer.rank for layer in layers.values())


def provenance(recipe: Recipe, export: Export, rank_error: float | None) -> dict[str, str]:
    """What the file says of its origin: enough to make it again; the error if layers were cut."""
    origin = {
        "ziplora.merge_id": recipe.merge_id,
        "ziplora.recipe": recipe.to_json(),
        "ziplora.style_strength": repr(export.style_strength),
    }
    if rank_error is not None:
        origin |= {
            "ziplora.rank": str(export.rank),
            "ziplora.rank_error": f"{rank_error:.6f}",
            "ziplora.style_knob": "fixed: layers that were cut hold subject and style at once",
        }
    return origin


def write_adapter(path: Path, layers: Mapping[Module, Layer], export: Export, metadata: Mapping[str, str]) -> None:
    """Write layers of scale 1 in a dialect and a precision."""
    ranks = {module: layer.rank for module, layer in layers.items()}
    alpha = Counter(ranks.values()).most_common(1)[0][0]
    if export.dialect == "diffusers":
        tensors, own = _diffusers_tensors(layers), _diffusers_metadata(ranks, alpha)
    else:
        tensors, own = _kohya_tensors(layers, alpha), _kohya_metadata(ranks, alpha)
    stored = {key: tensor.to(getattr(torch, export.precision)) for key, tensor in tensors.items()}
    spoilt = sorted(key for key, tensor in stored.items() if not tensor.isfinite().all())
    if spoilt:
        fact = f"{len(spoilt)} tensors hold numbers beyond {export.precision}, such as {spoilt[0]}."
        raise Failure("EXPORT_OVERFLOW", fact, "export it in float32.")
    write_tensors(path, stored, {"format": "pt", **own, **metadata})


def _shaped(module: Module, layer: Layer) -> tuple[Tensor, Tensor]:
    """Factors as the module's own kind has them: matrices, or kernels of a convolution."""
    down, up = layer.down, layer.up
    if module.path.rpartition(".")[2].startswith("conv"):
        return (down if down.dim() == 4 else down[:, :, None, None]), up[:, :, None, None]
    return down.flatten(1), up


def _diffusers_tensors(layers: Mapping[Module, Layer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        down, up = _shaped(module, layer)
        tensors |= {diffusers_key(module, "down"): down, diffusers_key(module, "up"): up}
    return tensors


def _diffusers_metadata(ranks: Mapping[Module, int], alpha: int) -> dict[str, str]:
    """PEFT's configuration with alpha = rank in every layer; diffusers before 0.42 took one alpha for all ranks."""
    other = {module.path: rank for module, rank in ranks.items() if rank != alpha}
    config = {
        "r": alpha,
        "lora_alpha": alpha,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(module.path for module in ranks),
    }
    return {_CONFIG_KEY: json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)}


def _kohya_tensors(layers: Mapping[Module, Layer], alpha: int) -> dict[str, Tensor]:
    """One alpha for all layers, the rest of the scale in `up`: diffusers reads only the commonest alpha of a file."""
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        down, up = _shaped(module, layer)
        tensors |= {
            kohya_key(module, "down"): down,
            kohya_key(module, "up"): up * (layer.rank / alpha),
            kohya_key(module, "alpha"): torch.tensor(float(alpha)),
        }
    return tensors


def _kohya_metadata(ranks: Mapping[Module, int], alpha: int) -> dict[str, str]:
    return {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks.values())),
        "ss_network_alpha": str(alpha),
    }


def merge_files(
    subject: Path,
    style: Path,
    out: Path,
    backbone: Sdxl,
    base_model: str,
    base_revision: str,
    store: Store,
    *,
    subject_prompt: str,
    style_prompt: str,
    subject_references: References | None = None,
    style_references: References | None = None,
    method: str = "ziplora-joint",
    parameters: Mapping[str, Parameter] | None = None,
    joint_prompts: tuple[str, ...],
    samples: int = 16,
    side: int = 1024,
    guidance: float = 5.0,
    seed: int = 0,
    export: Export = _AS_STORED,
    progress: Progress = unheard,
    allow_outliers: bool = False,
) -> tuple[Recipe, MergeResult, Exported]:
    """Two adapter files in, one out; calibrations and coefficients stay in the store, perhaps a temporary one."""

    def calibration(path: Path, prompt: str, references: References | None) -> Calibration:
        digest = references.sha256 if references else None
        return Calibration(
            sha256_of(path), base_model, base_revision, prompt, digest, samples, seed, side, guidance=guidance
        )

    recipe = recipe_for(
        method,
        parameters or {},
        calibration(subject, subject_prompt, subject_references),
        calibration(style, style_prompt, style_references),
        JointCalibration(joint_prompts, seed=seed, side=side, guidance=guidance),
        seed,
    )
    references = (subject_references, style_references)
    result = merge(recipe, subject, style, backbone, store, *references, progress, allow_outliers)
    return recipe, result, materialise(recipe, subject, style, store, out, export)

"""Merge two adapters: coefficients and a result in the store, and from these an adapter file whenever one is wanted."""

import resource
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .adapter import Adapter, Layer, read
from .backbone import Sdxl
from .calibration import Calibrated, calibrate
from .elementwise import RULES, Elementwise
from .failure import Failure
from .header import Refusal
from .joint import calibrate_jointly
from .keys import Module
from .memory import shortage_in_words
from .methods import method_named, read_parameters
from .methods.solution import Problem, Progress, Solution, unheard
from .pair import Coefficients, Pair, merged_layers
from .recipe import Calibration, MergeResult, Recipe, References, Role, sha256_of
from .store import Store, write_tensors, write_text

_COEFFICIENTS, _RESULT = "coefficients.safetensors", "result.json"
_AT_HAND = 4
"""So many adapters stay in memory, those of a pair and of the next: every pair is read again for its pictures."""
_VERSIONS = ("ziplora", "torch", "diffusers", "transformers", "peft", "safetensors")


def finished(store: Store, merge_id: str) -> MergeResult | None:
    """The result of a merge that is whole in the store."""
    folder = store.merge(merge_id)
    try:
        result = MergeResult.from_json((folder / _RESULT).read_text(encoding="utf-8"))
        whole = sha256_of(folder / _COEFFICIENTS) == result.coefficients_sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if whole else None


def read_both(recipe: Recipe, subject: Path, style: Path) -> tuple[Adapter, Adapter]:
    """Both adapters, once their files are those that the recipe names; the last few stay in memory."""
    return (
        _read_checked("subject", subject, recipe.subject_sha256),
        _read_checked("style", style, recipe.style_sha256),
    )


def _refuse_outliers(role: str, adapter: Adapter) -> None:
    if adapter.outliers:
        count, first = len(adapter.outliers), adapter.outliers[0]
        fact = f"{count} layers of the {role} change their weights absurdly much, first {first.part}.{first.path}."
        raise Refusal("WEIGHT_OUTLIER", fact, "leave it out, or set merge_outliers (--allow-outliers for one pair).")


def _read_checked(role: Role, path: Path, expected: str) -> Adapter:
    state = path.stat()
    return _adapter(role, path, expected, (state.st_mtime_ns, state.st_size))


@lru_cache(_AT_HAND)
def _adapter(role: Role, path: Path, expected: str, _state: tuple[int, int]) -> Adapter:
    found = sha256_of(path)
    if found != expected:
        fact = f"The {role} file {path.name} has the sha256 {found[:12]}…, the recipe names {expected[:12]}…."
        raise Failure("HASH_MISMATCH", fact, "download it again, or scan and plan again.")
    return read(path)


def merge(
    recipe: Recipe,
    subject: Path,
    style: Path,
    backbone: Sdxl,
    store: Store,
    subject_references: References | None = None,
    style_references: References | None = None,
    progress: Progress = unheard,
    allow_outliers: bool = False,
) -> MergeResult:
    """The finished result from the store, or the merge itself; absurdly strong adapters only when allowed."""
    found = finished(store, recipe.merge_id)
    if found is not None:
        return found
    started = time.perf_counter()
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    method = method_named(recipe.method)
    parameters = read_parameters(recipe.method, recipe.parameters)
    adapters = read_both(recipe, subject, style)
    for role, adapter in zip(("subject", "style"), adapters, strict=True):
        backbone.refuse_misfits(adapter.layers)
        if not allow_outliers:
            _refuse_outliers(role, adapter)
    pair = Pair(adapters[0].layers, adapters[1].layers)
    with shortage_in_words(backbone.device):
        calibrated: list[Calibrated | None] = [None, None]
        if method.calibrated:
            pair = pair.on(backbone.device)
            calibrated = [
                _calibrated(recipe.subject_calibration, "subject", subject, backbone, store, subject_references),
                _calibrated(recipe.style_calibration, "style", style, backbone, store, style_references),
            ]
        joint: tuple[Calibrated, ...] = ()
        if method.joint:
            if recipe.joint is None:
                _lacking("joint prompts")
            joint = calibrate_jointly(recipe.joint, pair, backbone)
        problem = Problem(pair, backbone, calibrated[0], calibrated[1], recipe.seed, progress, joint)
        solution = method.solve(problem, parameters)
    path = store.merge(recipe.merge_id) / _COEFFICIENTS
    write_coefficients(path, solution.coefficients, recipe)
    result = _result(recipe, pair, solution, backbone, path, time.perf_counter() - started)
    write_text(path.with_name(_RESULT), result.to_json())
    return result


def _calibrated(
    request: Calibration | None,
    role: str,
    adapter: Path,
    backbone: Sdxl,
    store: Store,
    references: References | None,
) -> Calibrated:
    if request is None:
        _lacking(f"the {role}")
    return calibrate(request, adapter, backbone, store, references)


def _lacking(what: str) -> NoReturn:
    fact = f"The recipe has no calibration of {what}, which its method needs."
    raise Failure("CALIBRATION_MISMATCH", fact, "plan the merge again.")


def _result(
    recipe: Recipe, pair: Pair, solution: Solution, backbone: Sdxl, coefficients: Path, seconds: float
) -> MergeResult:
    ranks = [
        sum(layers[module].rank for layers in (pair.subject, pair.style) if module in layers) for module in pair.unet
    ]
    return MergeResult(
        merge_id=recipe.merge_id,
        losses=solution.losses,
        movement=solution.coefficients.movement(),
        subject_mean=_mean(solution.coefficients.subject),
        style_mean=_mean(solution.coefficients.style),
        merged=len(pair.merged),
        passed_through=len(pair.passed_through),
        left_out=pair.left_out,
        rank=max(ranks),
        seconds=seconds,
        peak_memory_bytes=_peak_memory_bytes(backbone.device),
        device=torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else backbone.device.type,
        dtype=str(backbone.dtype).removeprefix("torch."),
        versions=_versions(),
        coefficients_sha256=sha256_of(coefficients),
        rank_error=solution.rank_error,
        movement_by_block=solution.coefficients.movement_by_block(),
    )


def _mean(columns: Mapping[Module, Tensor]) -> float:
    return float(torch.cat(list(columns.values())).double().mean()) if columns else 1.0


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            found[package] = "not installed"
    return found


def write_coefficients(path: Path, coefficients: Coefficients, recipe: Recipe) -> None:
    """Write both vectors of every layer, in single precision, and what else there is, in double."""
    sides = {"subject": coefficients.subject, "style": coefficients.style}
    tensors = {
        f"{role}.{module.path}": vector.float() for role, columns in sides.items() for module, vector in columns.items()
    }
    if coefficients.projection:
        tensors["projection"] = torch.tensor(coefficients.projection, dtype=torch.float64)
    if kept := coefficients.elementwise:
        tensors[kept.rule] = torch.tensor([kept.density, kept.seed], dtype=torch.float64)
    write_tensors(path, tensors, {"ziplora.merge_id": recipe.merge_id, "ziplora.recipe": recipe.to_json()})


def read_coefficients(store: Store, merge_id: str) -> Coefficients:
    """The coefficients of a finished merge, or a failure if they are not those that were written."""
    if finished(store, merge_id) is None:
        fact = f"Merge {merge_id[:12]} has no result, or its coefficients are not those that were written."
        raise Failure("MERGE_DAMAGED", fact, "run the merge again.")
    try:
        tensors = load_file(store.merge(merge_id) / _COEFFICIENTS)
    except SafetensorError as error:
        raise Failure("MERGE_DAMAGED", f"The coefficients cannot be read: {error}.", "run the merge again.") from error
    projection = float(tensors.pop("projection", 0.0))
    kept = None
    for rule in RULES:
        if rule in tensors:
            density, seed = tensors.pop(rule).tolist()
            kept = Elementwise(rule, density, int(seed))
    sides: dict[str, dict[Module, Tensor]] = {"subject": {}, "style": {}}
    for name, vector in tensors.items():
        role, _, path = name.partition(".")
        sides[role][Module("unet", path)] = vector
    return Coefficients(sides["subject"], sides["style"], projection, kept)


def merged_of(
    recipe: Recipe, subject: Path, style: Path, store: Store, style_strength: float = 1.0
) -> dict[Module, Layer]:
    """The layers of a finished merge, from its coefficients and the two parents."""
    adapters = read_both(recipe, subject, style)
    pair = Pair(adapters[0].layers, adapters[1].layers)
    return merged_layers(pair, read_coefficients(store, recipe.merge_id), style_strength)

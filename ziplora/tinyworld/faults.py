"""The drawer of bad adapters: one repository per real fault, each a good one with a single thing wrong.

The faults and the codes to report them by are those of the public issue trackers (FAULTS.md, rows F, M and P).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from .repository import (
    AdapterFacts,
    Dialect,
    Layers,
    TrainedLayer,
    join_file,
    save_weights,
    split_file,
    weights_name,
    write_repository,
)

CANARY = "a-pickle-was-opened"
"""The file that appears in the working directory of whoever unpickles the pickle fault."""

_OPENS_CANARY = b"\x80\x02cbuiltins\nopen\n(V" + CANARY.encode() + b"\nVw\ntR."
"""The pickle opcodes of `open(CANARY, "w")`, spelt out: protocol 2, global, mark, two strings, tuple, call, stop."""

Spoil = Callable[[Path], None]
Tensors = Mapping[str, Tensor]


def _rewriting(change: Callable[[bytes], bytes]) -> Spoil:
    """A fault in the bytes of the weights file."""

    def spoil(weights: Path) -> None:
        weights.write_bytes(change(weights.read_bytes()))

    return spoil


def _retensoring(change: Callable[[Tensors], Tensors], **metadata: str) -> Spoil:
    """A fault in what a sound safetensors file holds."""

    def spoil(weights: Path) -> None:
        content = weights.read_bytes()
        save_weights(weights, change(load(content)), split_file(content)[0]["__metadata__"] | metadata)

    return spoil


def _modules(tensors: Tensors) -> list[str]:
    return sorted({key.split(".")[0] for key in tensors})


def _with_magnitudes(tensors: Tensors) -> Tensors:
    """DoRA as kohya's fork of it is stored: next to each pair, the norm of every row of the adapted weight."""
    ups = {module: tensors[f"{module}.lora_up.weight"] for module in _modules(tensors)}
    return dict(tensors) | {f"{module}.dora_scale": torch.ones_like(up[:, :1]) for module, up in ups.items()}


def _as_kronecker_factors(tensors: Tensors) -> Tensors:
    """LoKr: the weight changes by the Kronecker product of a 4 × 4 matrix and one of a quarter of the size."""
    factors: dict[str, Tensor] = {}
    for module in _modules(tensors):
        down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
        change = up.float() @ down.float()
        factors[f"{module}.alpha"] = tensors[f"{module}.alpha"]
        factors[f"{module}.lokr_w1"] = torch.eye(4, dtype=torch.float16)
        block = change[: change.shape[0] // 4, : change.shape[1] // 4]
        factors[f"{module}.lokr_w2"] = block.to(torch.float16).contiguous()
    return factors


def _with_one_nan(tensors: Tensors) -> Tensors:
    key = sorted(tensors)[len(tensors) // 2]
    spoilt = tensors[key].clone()
    spoilt[0, -1] = torch.nan
    return dict(tensors) | {key: spoilt}


def _with_zero_ups(tensors: Tensors) -> Tensors:
    """As training never started: the up matrices still have their initial value."""
    ends = (".lora.up.weight", ".lora_B.weight")
    return {key: torch.zeros_like(tensor) if key.endswith(ends) else tensor for key, tensor in tensors.items()}


def _with_a_strange_key(tensors: Tensors) -> Tensors:
    key = sorted(tensors)[0]
    module = key.split(".lora")[0]
    return dict(tensors) | {f"{module}.lora.gate.weight": torch.ones(1, dtype=torch.float16)}


def _with_a_key_twice(content: bytes) -> bytes:
    """Who keeps the last of two equal names swaps two tensors; who keeps the first reads one of them twice."""
    header, payload = split_file(content)
    names = [name for name in header if name != "__metadata__"]
    first = names[0]
    second = next(name for name in names[1:] if header[name]["shape"] == header[first]["shape"])
    hidden = f"{json.dumps(first)}: {json.dumps(header[first])}"
    header[first], header[second] = header[second], header[first]
    return join_file(f"{{{hidden}, {json.dumps(header)[1:]}", payload)


def _lfs_pointer(content: bytes) -> bytes:
    """What git stores in the place of a large file, and what is left when nobody fetches it."""
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


def _pickle(content: bytes) -> bytes:
    """Nothing of the good file is left but its name."""
    return _OPENS_CANARY


_SPOILT_WEIGHTS: dict[str, tuple[str, Dialect, Spoil]] = {
    "dora": ("UNSUPPORTED_ADAPTER", "kohya", _retensoring(_with_magnitudes)),
    "lokr": (
        "UNSUPPORTED_ADAPTER",
        "kohya",
        _retensoring(
            _as_kronecker_factors, ss_network_module="lycoris.kohya", ss_network_args='{"algo": "lokr", "factor": 4}'
        ),
    ),
    "nan": ("NON_FINITE", "diffusers", _retensoring(_with_one_nan)),
    "zero-delta": ("ZERO_DELTA", "diffusers", _retensoring(_with_zero_ups)),
    "unknown-keys": ("UNUSED_KEYS", "diffusers", _retensoring(_with_a_strange_key)),
    "truncated": ("FILE_TRUNCATED", "diffusers", _rewriting(lambda content: content[: len(content) * 3 // 4])),
    "duplicate-key": ("DUPLICATE_KEY", "diffusers", _rewriting(_with_a_key_twice)),
    "lfs-pointer": ("NOT_SAFETENSORS", "diffusers", _rewriting(_lfs_pointer)),
    "pickle": ("PICKLE_REFUSED", "diffusers", _rewriting(_pickle)),
}
"""By name: the code to report, the dialect of the good file, and what is done to it."""


def _stable_diffusion_1_layers() -> dict[str, TrainedLayer]:
    """Rank 4 on the first attention blocks of Stable Diffusion 1.5: 320 wide, told of the text in 768 numbers."""
    generator = torch.Generator().manual_seed(0)

    def layer(inputs: int) -> TrainedLayer:
        down, up = torch.randn(4, inputs, generator=generator), torch.randn(320, 4, generator=generator)
        return TrainedLayer(down / inputs**0.5, up * 0.01, alpha=4.0)

    text = ("attn2.to_k", "attn2.to_v")
    projections = [f"attn{which}.{name}" for which in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    return {
        f"down_blocks.0.attentions.{index}.transformer_blocks.0.{name}": layer(768 if name in text else 320)
        for index in (0, 1)
        for name in projections
    }


def write_faults(folder: Path, facts: AdapterFacts, unet: Layers) -> dict[str, str]:
    """Write `folder`/{fault}-lora for every fault, made from one good adapter; fault name to the code to report."""
    good = replace(facts, dialect="diffusers")
    for name, (_, dialect, spoil) in _SPOILT_WEIGHTS.items():
        spoilt = replace(facts, name=name, dialect=dialect)
        spoil(write_repository(folder, spoilt, unet, {}, []) / weights_name(spoilt))
    write_repository(folder, replace(good, name="wrong-base"), _stable_diffusion_1_layers(), {}, [])
    write_repository(folder, replace(good, name="no-licence", licence=None), unet, {}, [])
    write_repository(folder, replace(good, name="no-derivatives", licence="cc-by-nd-4.0"), unet, {}, [])
    return {name: code for name, (code, _, _) in _SPOILT_WEIGHTS.items()} | {
        "wrong-base": "BASE_MISMATCH",
        "no-licence": "LICENCE_UNKNOWN",
        "no-derivatives": "LICENCE_NO_DERIVATIVES",
    }

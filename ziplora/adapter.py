"""One LoRA file: its facts from the header alone, or its layers in single precision, or a refusal with a reason."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .alpha import AlphaRule, Config, alpha_rule, parts_of, read_config, scale_of
from .header import Header, Refusal, StoredTensor, quoted, read_header, refuse_pickle
from .keys import KEYS_REMEMBERED, Dialect, Layout, Module, Part, Side, parse_all

Base = Literal["sdxl", "sd1", "sd2", "tinyworld", "unknown"]

CONFIG_NAME = "adapter_config.json"
"""What PEFT writes beside its weights."""

_BASE_OF_WIDTH: Mapping[int, Base] = {2048: "sdxl", 768: "sd1", 1024: "sd2", 160: "tinyworld"}
"""How wide the text is that cross-attention listens to."""
_LAYERS_PER_BLOCK: Mapping[Base, int] = {"tinyworld": 1}
"""Of the UNet, where not two, as in every Stable Diffusion up to SDXL."""
_DISTILLED = re.compile(r"turbo|lightning|hyper-?sd|\blcm\b|dmd", re.IGNORECASE)
"""What names of base models say that draw in few steps."""
_TEXT_SIDE = re.compile(r"attn2[._](?:processor\.)?to_[kv](?:_lora)?\.(?:lora_down|lora\.down|lora_A|down)\.")

_OTHER_KINDS = {
    "dora": re.compile(r"\.(dora_scale|lora_magnitude_vector(\.weight)?|lora_magnitude_vector\.\w+\.weight)$"),
    "loha": re.compile(r"\.hada_\w+$"),
    "lokr": re.compile(r"\.lokr_\w+$"),
    "oft": re.compile(r"\.(b?oft_\w+|oft_R\.\w+)(\.weight)?$"),
    "ia3": re.compile(r"\.(on_input|ia3_l(\.\w+)?)$"),
    "glora": re.compile(r"\.[ab][12]\.weight$"),
    "tucker": re.compile(r"\.lora_mid\.weight$"),
    "full": re.compile(r"\.diff(_b)?$"),
}
_EMBEDDING = re.compile(r"bundle_emb\..*|string_to_param\..*|clip_[lg]|emb_params|<[^<>]+>")
"""Textual-inversion vectors, alone or as bundled by OneTrainer."""
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_INTEGERS = {"I64", "I32", "I16", "I8", "U8"}

_ABSURD_RMS = 1.0
"""Twenty times the typical weight of SDXL; trained changes are below a thousandth."""
_ABSURD_RATIO = 100.0
_ANOTHER_FILE = "leave it out, or ask the author for a plain LoRA."


@dataclass(frozen=True)
class AdapterHeader:
    """What the header of an accepted file says; the bytes of its tensors were not read."""

    size_bytes: int
    dialect: Dialect
    base: Base
    """Inferred from shapes, never from what a card claims."""
    variant: str
    """Of the base: `distilled`, `v-prediction`, or empty for the plain one; as far as its trainer wrote it down."""
    layers: Mapping[Part, int]
    """How many layers each covered part has; the UNet is always covered."""
    ranks: tuple[int, ...]
    alpha_rules: tuple[AlphaRule, ...]
    """Where the layers' alpha comes from: a tensor of the file, a configuration, or, failing both, the rank."""
    dtypes: tuple[str, ...]
    embeddings: tuple[str, ...]
    """Keys of textual-inversion vectors: its prompts need them, and a merge does not carry them."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One adapted weight, which changes by scale · up @ down."""

    down: Float[Tensor, "rank in *kernel"]
    up: Float[Tensor, "out rank"]
    scale: float

    @property
    def rank(self) -> int:
        """Inner size of the two matrices."""
        return self.down.shape[0]

    @property
    def delta_size(self) -> int:
        """How many numbers the change has."""
        return self.up.shape[0] * self.down[0].numel()

    def delta(self) -> Float[Tensor, "out in *kernel"]:
        """The change of the weight, in full."""
        return (self.scale * self.up @ self.down.flatten(1)).reshape(-1, *self.down.shape[1:])

    def delta_norm(self) -> float:
        """Frobenius norm of the change, from the factors: ‖BA‖² = tr(BᵀB · AAᵀ)."""
        down, up = self.down.flatten(1).double(), self.up.double()
        return abs(self.scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA file in memory, in single precision on the CPU."""

    facts: AdapterHeader
    layers: Mapping[Module, Layer]
    outliers: tuple[Module, ...]
    """Layers whose change is absurdly large (WEIGHT_OUTLIER): merge them only when told to."""


@dataclass(frozen=True)
class _Plan:
    """Which keys make up which layer, and what their configuration says."""

    facts: AdapterHeader
    keys: Mapping[Module, Mapping[Side, str]]
    configs: Mapping[Part, Config]


def family_of(base_model: Path) -> Base:
    """The family of the base model in a folder, told as that of an adapter: by how wide the text it listens to is."""
    config = json.loads((base_model / "unet" / "config.json").read_text(encoding="utf-8"))
    return _BASE_OF_WIDTH.get(config.get("cross_attention_dim"), "unknown")


def inspect(path: Path) -> AdapterHeader:
    """The facts of a file, from its header and the configuration beside it."""
    return _plan(path).facts


def needs_config(header: Header) -> bool:
    """Whether a configuration beside the file would be PEFT's for it; to others it means nothing."""
    return any(key.startswith("base_model.") for key in header.tensors)


def describe(header: Header, size_bytes: int, config: Config | None) -> AdapterHeader:
    """The same of a header that was read elsewhere, such as by a range request."""
    return _planned(header, size_bytes, config).facts


def read(path: Path) -> Adapter:
    """Every layer of a file, checked to be finite and to change something."""
    plan = _plan(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for sides in plan.keys.values() for key in sides.values()}
    except SafetensorError as error:
        raise Refusal("BAD_LAYOUT", f"The safetensors library says: {error}.", _ANOTHER_FILE) from error
    _refuse_non_finite(tensors)
    layers = {module: _layer(module, sides, tensors, plan.configs) for module, sides in sorted(plan.keys.items())}
    norms = {module: layer.delta_norm() for module, layer in layers.items()}
    if not any(norms.values()):
        fact = f"All {len(layers)} layers change their weights by exactly zero: it was never trained."
        raise Refusal("ZERO_DELTA", fact, "leave it out, or ask the author for the trained file.")
    return Adapter(plan.facts, layers, _outliers(layers, norms))


def _plan(path: Path) -> _Plan:
    if path.suffix.lower() in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        refuse_pickle(f"A {path.suffix} file can run code when opened")
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        header = read_header(stream, size_bytes)
    beside = path.with_name(CONFIG_NAME)
    has_config = needs_config(header) and beside.is_file()
    return _planned(header, size_bytes, read_config(beside) if has_config else None)


def _base(tensors: Mapping[str, StoredTensor]) -> Base:
    """The family whose cross-attention is as wide as this file's down matrices on text keys and values."""
    widths = {tensor.shape[1] for key, tensor in tensors.items() if _TEXT_SIDE.search(key) and len(tensor.shape) > 1}
    return _BASE_OF_WIDTH.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"


def variant_of(metadata: Mapping[str, str]) -> str:
    """Which variant of a base a trainer's metadata names, or a map with a base model's name in it."""
    if any(_DISTILLED.search(metadata.get(key, "")) for key in ("ss_sd_model_name", "base_model")):
        return "distilled"
    by_velocity = (
        metadata.get("modelspec.prediction_type") == "v"
        or metadata.get("ss_zero_terminal_snr") == "True"
        or metadata.get("ss_base_model_version", "").endswith("_v")
    )
    return "v-prediction" if by_velocity else ""


def _planned(header: Header, size_bytes: int, config: Config | None) -> _Plan:
    _refuse_other_kinds(header)
    embeddings = tuple(key for key in header.tensors if _EMBEDDING.fullmatch(key))
    base = _base(header.tensors)
    layout = parse_all(header.tensors.keys() - set(embeddings), _LAYERS_PER_BLOCK.get(base, 2))
    dialect = _accepted_dialect(layout)
    modules = _modules(layout)
    ranks = {_checked_rank(sides, header.tensors) for sides in modules.values()}
    configs = parts_of(header.metadata, dialect, config)
    layers = Counter(module.part for module in modules)
    if "unet" not in layers:
        fact = f"All {len(modules)} layers belong to text encoders."
        raise Refusal("NO_UNET_LAYERS", fact, "leave it out: what is merged are UNet layers.")
    facts = AdapterHeader(
        size_bytes=size_bytes,
        dialect=dialect,
        base=base,
        variant=variant_of(header.metadata),
        layers=dict(sorted(layers.items())),
        ranks=tuple(sorted(ranks)),
        alpha_rules=tuple(sorted({alpha_rule(module, "alpha" in sides, configs) for module, sides in modules.items()})),
        dtypes=tuple(sorted({header.tensors[key].dtype for key in layout.names})),
        embeddings=embeddings,
    )
    return _Plan(facts, modules, configs)


def _refuse_other_kinds(header: Header) -> None:
    kinds = Counter(filter(None, map(_other_kind, header.tensors)))
    for kind in _OTHER_KINDS:
        if kind in kinds:
            first = min(key for key in header.tensors if _other_kind(key) == kind)
            fact = f"It is a {kind} adapter: {kinds[kind]} tensors such as {quoted(first)}."
            raise Refusal("UNSUPPORTED_ADAPTER", fact, _ANOTHER_FILE)


@lru_cache(maxsize=KEYS_REMEMBERED)
def _other_kind(key: str) -> str | None:
    """The kind of adapter that alone has tensors named like this."""
    return next((kind for kind, ending in _OTHER_KINDS.items() if ending.search(key)), None)


def _accepted_dialect(layout: Layout) -> Dialect:
    total = len(layout.names) + len(layout.unknown)
    if not layout.names:
        example = f"such as {quoted(min(layout.unknown))}" if layout.unknown else "apart from embeddings"
        if any("lora" in key.lower() for key in layout.unknown):
            fact = f"None of its {total} LoRA tensors is named in a known way, {example}."
            raise Refusal("UNSUPPORTED_LAYOUT", fact, "convert it to diffusers' or kohya's SDXL names.")
        raise Refusal("NOT_A_LORA", f"None of its {total} tensors belongs to a LoRA, {example}.", "leave it out.")
    if layout.dialect is None:
        kinds = sorted({"/".join(sorted(name.dialects)) for name in layout.names.values()})
        fact = f"Its tensors are named in {len(kinds)} ways at once: {', '.join(kinds)}."
        raise Refusal("MIXED_LAYOUT", fact, "ask the author for one file of one training.")
    if layout.unknown:
        fact = f"{len(layout.unknown)} of {total} tensors are not understood, such as {quoted(min(layout.unknown))}."
        raise Refusal("UNUSED_KEYS", fact, _ANOTHER_FILE)
    return layout.dialect


def _modules(layout: Layout) -> dict[Module, dict[Side, str]]:
    """The keys of each layer: a pair, perhaps with an alpha."""
    modules: dict[Module, dict[Side, str]] = {}
    for key, name in sorted(layout.names.items()):
        first = modules.setdefault(name.module, {}).setdefault(name.side, key)
        if first != key:
            fact = f"{quoted(first)} and {quoted(key)} name the same tensor."
            raise Refusal("DUPLICATE_KEY", fact, "ask the author for one file of one training.")
    alone = [key for sides in modules.values() if not {"down", "up"} <= sides.keys() for key in sides.values()]
    if alone:
        fact = f"{len(alone)} of {len(layout.names)} tensors lack their partner, such as {quoted(min(alone))}."
        raise Refusal("UNUSED_KEYS", fact, _ANOTHER_FILE)
    return modules


def _checked_rank(sides: Mapping[Side, str], tensors: Mapping[str, StoredTensor]) -> int:
    """The layer's rank, once its shapes fit together and its numbers can be read."""
    for side, key in sides.items():
        stored = tensors[key]
        if stored.dtype not in (_FLOATS | _INTEGERS if side == "alpha" else _FLOATS):
            fact = f"Tensor {quoted(key)} is of dtype {stored.dtype}, whose scale is not known."
            raise Refusal("UNSUPPORTED_DTYPE", fact, "ask the author for a float16 file.")
    down, up = tensors[sides["down"]].shape, tensors[sides["up"]].shape
    paired = len(down) in (2, 4) and len(up) in (2, 4) and down[0] == up[1] and math.prod(up[2:]) == 1
    if not paired or ("alpha" in sides and math.prod(tensors[sides["alpha"]].shape) != 1):
        fact = f"{quoted(sides['down'])} of shape {list(down)} and its up of shape {list(up)} make no layer."
        raise Refusal("UNSUPPORTED_LAYOUT", fact, _ANOTHER_FILE)
    return down[0]


def _layer(
    module: Module, sides: Mapping[Side, str], tensors: Mapping[str, Tensor], configs: Mapping[Part, Config]
) -> Layer:
    down, up = tensors[sides["down"]], tensors[sides["up"]].flatten(1)
    alpha = tensors[sides["alpha"]].item() if "alpha" in sides else None
    return Layer(down, up, scale_of(module, down.shape[0], alpha, configs))


def _refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    counts = {key: int((~tensor.isfinite()).sum()) for key, tensor in sorted(tensors.items())}
    spoilt = {key: count for key, count in counts.items() if count}
    if spoilt:
        first = next(iter(spoilt))
        fact = f"{sum(spoilt.values())} numbers in {len(spoilt)} tensors are NaN or infinite, first in {quoted(first)}."
        raise Refusal("NON_FINITE", fact, "leave it out: its training broke down.")


def _outliers(layers: Mapping[Module, Layer], norms: Mapping[Module, float]) -> tuple[Module, ...]:
    """Layers whose mean change is larger than any weight, or than a hundred times the median layer's."""
    rms = {module: norm / math.sqrt(layers[module].delta_size) for module, norm in norms.items()}
    median = float(torch.tensor(list(rms.values())).median())
    limit = min(_ABSURD_RMS, _ABSURD_RATIO * median) if median else _ABSURD_RMS
    return tuple(module for module, value in rms.items() if value > limit)

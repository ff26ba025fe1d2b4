"""How strong a LoRA's layers are: alpha / rank, and where alpha comes from.

A tensor of the file goes before its configuration, and that before alpha = rank, which is what files meant before
either was written. All of it is per layer, since ranks and alphas may differ within a file.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .header import Refusal, quoted
from .keys import Dialect, Module, Part

AlphaRule = Literal["tensor", "config", "rank"]
Config = Mapping[str, Any]
"""PEFT's configuration of one part, as parsed from JSON."""

_METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps it inside the file: one flat map, each key after its part's name."""
_MAX_CONFIG_BYTES = 1_000_000
_MAX_ALPHA = 1e9


def read_config(path: Path) -> Config:
    """The configuration in a file, of which no more is read than is ever accepted."""
    with path.open("rb") as stream:
        return parse_config(stream.read(_MAX_CONFIG_BYTES + 1))


def parse_config(content: bytes | str) -> Config:
    """PEFT's configuration; broken or enormous ones are refused, as a guessed alpha would merge at a wrong strength."""
    try:
        config = json.loads(content) if len(content) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _bad_config("is not a JSON object of less than a megabyte")
    return config


def _bad_config(fact: str) -> Refusal:
    return Refusal("CONFIG_INVALID", f"The LoRA's configuration {fact}.", "ask the author to save it again.")


def parts_of(metadata: Mapping[str, str], dialect: Dialect, beside: Config | None) -> dict[Part, Config]:
    """Each part's configuration; a file beside the weights counts only for weights as PEFT writes them."""
    if dialect == "peft":
        return {"unet": beside} if beside is not None else {}
    if _METADATA_KEY not in metadata:
        return {}
    configs: dict[Part, dict[str, Any]] = {}
    for key, value in parse_config(metadata[_METADATA_KEY]).items():
        part, _, setting = key.partition(".")
        if part in ("unet", "text_encoder", "text_encoder_2"):
            configs.setdefault(part, {})[setting] = value  # type: ignore[arg-type]
    return {**configs}


def _configured_alpha(module: Module, configs: Mapping[Part, Config]) -> float | None:
    """PEFT's rule: the first pattern that is the end of the module's name, else what holds for all."""
    config = configs.get(module.part)
    if not config:
        return None
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or not all(re.fullmatch(r"[\w.]+", pattern) for pattern in patterns):
        raise _bad_config("has an alpha_pattern that is not a map from plain module names")
    matching = (alpha for end, alpha in patterns.items() if f".{module.path}".endswith(f".{end}"))
    alpha = next(matching, config.get("lora_alpha"))
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _MAX_ALPHA:
        raise _bad_config(f"has an alpha of {quoted(json.dumps(alpha))}")
    return float(alpha)


def alpha_rule(module: Module, has_tensor: bool, configs: Mapping[Part, Config]) -> AlphaRule:
    """Where the layer's alpha comes from."""
    if has_tensor:
        return "tensor"
    return "rank" if _configured_alpha(module, configs) is None else "config"


def scale_of(module: Module, rank: int, tensor_alpha: float | None, configs: Mapping[Part, Config]) -> float:
    """The layer's scale: the only place where alpha is divided by rank, or by its root for rsLoRA."""
    if tensor_alpha is not None:
        return tensor_alpha / rank
    configured = _configured_alpha(module, configs)
    if configured is None:
        return 1.0
    return configured / (math.sqrt(rank) if configs[module.part].get("use_rslora") is True else rank)

"""One trained adapter as a small repository, as found on the Hub: weights in one of five dialects, card and samples.

The dialects are those that SDXL LoRAs come in: what diffusers' training scripts write today and what they wrote in
2023, PEFT's own folder, and kohya's trainer with diffusers' or with the original SDXL code's block names.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import save
from torch import Tensor

Dialect = Literal["diffusers", "diffusers_old", "peft", "kohya", "kohya_sgm"]
_Value = TypeVar("_Value", bound=Hashable)

_LAYERS_PER_BLOCK = 1
"""Of the tiny UNet; the numbers in kohya_sgm names depend on it."""
_PEFT_MODEL = {
    "base_model_class": "UNet2DConditionModel",
    "parent_library": "diffusers.models.unets.unet_2d_condition",
}
"""How PEFT notes the class of the model that it adapted."""


@dataclass(frozen=True)
class TrainedLayer:
    """One adapted linear layer: its weight changes by alpha / rank · up @ down."""

    down: Float[Tensor, "rank in"]
    up: Float[Tensor, "out rank"]
    alpha: float

    @property
    def rank(self) -> int:
        """Inner size of the two matrices."""
        return self.down.shape[0]


Layers = Mapping[str, TrainedLayer]
"""Module name within its model, such as `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`, to layer."""


@dataclass(frozen=True)
class AdapterFacts:
    """What a repository says about its adapter."""

    name: str
    """Names the folder, `{name}-lora`, and kohya's weights file."""
    role: Literal["subject", "style"]
    trigger_prompt: str
    licence: str | None
    """A Hub licence id; None leaves the card without one."""
    base_model: str
    pictures: int
    """How many pictures the adapter was trained on."""
    dialect: Dialect


def _half(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float16).contiguous()


def _peft_tensors(layers: Layers, prefix: str) -> dict[str, Tensor]:
    """PEFT's names, from which diffusers' own scripts start."""
    return {
        f"{prefix}.{module}.{side}.weight": _half(matrix)
        for module, layer in layers.items()
        for side, matrix in (("lora_A", layer.down), ("lora_B", layer.up))
    }


def _old_unet_name(module: str) -> str:
    """Before PEFT, attention processors held the layers: `attn1.to_out.0` was `attn1.processor.to_out_lora`."""
    name, found = re.subn(r"\.(attn[12])\.(to_[qkv]|to_out)(\.0)?$", r".\1.processor.\2_lora", module)
    return name if found else f"{module}.lora"


def _sgm_name(module: str) -> str:
    """The module under the original SDXL code's numbering: residual, attention and sampling blocks counted through."""
    stride = _LAYERS_PER_BLOCK + 1
    match module.split("."):
        case ["down_blocks", block, "attentions", layer, *rest]:
            place = f"input_blocks.{1 + int(block) * stride + int(layer)}.1"
        case ["mid_block", "attentions", "0", *rest]:
            place = "middle_block.1"
        case ["up_blocks", block, "attentions", layer, *rest]:
            place = f"output_blocks.{int(block) * stride + int(layer)}.1"
        case _:
            raise ValueError(f"{module}: kohya_sgm names only layers inside attention blocks; use kohya")
    return ".".join([place, *rest])


def _kohya_tensors(layers: Layers, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}_{module.replace('.', '_')}.{part}": _half(tensor)
        for module, layer in layers.items()
        for part, tensor in (
            ("lora_down.weight", layer.down),
            ("lora_up.weight", layer.up),
            ("alpha", torch.tensor(layer.alpha)),
        )
    }


def _inside_text_model(layers: Layers) -> dict[str, TrainedLayer]:
    """Names as files have them: transformers before 5 saved `text_model.`, and diffusers reads it under any version."""
    return {f"text_model.{module.removeprefix('text_model.')}": layer for module, layer in layers.items()}


def tensors_of(dialect: Dialect, unet: Layers, text_encoder: Layers) -> dict[str, Tensor]:
    """File keys to float16 tensors; `text_encoder` is SDXL's first, its modules with or without `text_model.`.

    Only kohya files hold alpha as a tensor. It is folded into `up` for diffusers_old, which has no other place for
    it, and stands in the header or the configuration that `write_repository` adds for diffusers and peft.
    Give kohya files one alpha: diffusers 0.42.1 reads them with the commonest alpha in nearly every layer.
    """
    text = _inside_text_model(text_encoder)
    match dialect:
        case "diffusers":
            peft_names = _peft_tensors(unet, "unet") | _peft_tensors(text, "text_encoder")
            tensors: dict[str, Tensor] = convert_state_dict_to_diffusers(peft_names)
            return tensors
        case "diffusers_old":
            named = {f"unet.{_old_unet_name(module)}": layer for module, layer in unet.items()}
            named |= {f"text_encoder.{module}.lora_linear_layer": layer for module, layer in text.items()}
            return {
                f"{name}.{side}.weight": _half(matrix)
                for name, layer in named.items()
                for side, matrix in (("down", layer.down), ("up", layer.up * (layer.alpha / layer.rank)))
            }
        case "peft":
            if text:
                raise ValueError(
                    "a PEFT folder adapts one model, the UNet: leave the text encoder out or change dialect"
                )
            return _peft_tensors(unet, "base_model.model")
        case "kohya":
            return _kohya_tensors(unet, "lora_unet") | _kohya_tensors(text, "lora_te1")
        case "kohya_sgm":
            numbered = {_sgm_name(module): layer for module, layer in unet.items()}
            return _kohya_tensors(numbered, "lora_unet") | _kohya_tensors(text, "lora_te1")


def _most_common(values: Iterable[_Value]) -> _Value:
    return Counter(values).most_common(1)[0][0]


def _lora_config(layers: Layers, base_model: str | None = None) -> dict[str, Any]:
    """PEFT's configuration of the layers, ready for JSON."""
    rank = _most_common(layer.rank for layer in layers.values())
    alpha = _most_common(layer.alpha for layer in layers.values())
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {module: layer.rank for module, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {module: layer.alpha for module, layer in layers.items() if layer.alpha != alpha},
        "base_model_name_or_path": base_model,
        "inference_mode": base_model is not None,
        "auto_mapping": _PEFT_MODEL if base_model is not None else None,
    }
    written: dict[str, Any] = LoraConfig(**config).to_dict()  # type: ignore[no-untyped-call]
    # PEFT turns the modules into a set, whose order changes from run to run.
    return written | {"target_modules": config["target_modules"]}


def _metadata_of(facts: AdapterFacts, unet: Layers, text_encoder: Layers) -> dict[str, str]:
    """What the dialect's own writer puts in the file's metadata."""
    if facts.dialect == "diffusers":
        # Written without `text_model.`: PEFT matches the end of a module's name, so any transformers understands it.
        text = {module.removeprefix("text_model."): layer for module, layer in text_encoder.items()}
        parts = {"unet": unet, "text_encoder": text}
        configs = {part: _lora_config(layers) for part, layers in parts.items() if layers}
        flat = {f"{part}.{key}": value for part, config in configs.items() for key, value in config.items()}
        return {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(flat, indent=2, sort_keys=True)}
    if facts.dialect in ("diffusers_old", "peft"):
        return {"format": "pt"}
    layers = [*unet.values(), *text_encoder.values()]
    return {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": facts.name,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_alpha": f"{_most_common(layer.alpha for layer in layers):g}",
        "ss_network_dim": str(_most_common(layer.rank for layer in layers)),
        "ss_network_module": "networks.lora",
        "ss_num_train_images": str(facts.pictures),
        "ss_output_name": facts.name,
        "ss_sd_model_name": facts.base_model,
        "ss_v2": "False",
    }


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's parsed header and the bytes of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:end])
    return header, content[end:]


def join_file(header: str, payload: bytes) -> bytes:
    """A safetensors file of a header and the bytes of its tensors."""
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + payload


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that is the same, byte for byte, each time.

    safetensors writes the metadata in an order that changes from run to run, and an adapter is known by its hash.
    """
    header, payload = split_file(save(dict(tensors)))
    path.write_bytes(join_file(json.dumps({"__metadata__": dict(sorted(metadata.items()))} | header), payload))


def weights_name(facts: AdapterFacts) -> str:
    """File name of the weights inside the repository."""
    if facts.dialect in ("diffusers", "diffusers_old"):
        return str(LORA_WEIGHT_NAME_SAFE)
    return SAFETENSORS_WEIGHTS_NAME if facts.dialect == "peft" else f"{facts.name}.safetensors"


def _card(facts: AdapterFacts, urls: Sequence[tuple[str, str]]) -> str:
    """README.md in the Hub's LoRA template; `urls` are the samples' prompts and paths."""
    front: dict[str, object] = {
        "base_model": facts.base_model,
        "instance_prompt": facts.trigger_prompt,
        "library_name": "diffusers",
        "tags": ["text-to-image", "lora", "diffusers", "template:sd-lora", "stable-diffusion-xl"],
        "widget": [{"text": prompt, "output": {"url": url}} for prompt, url in urls],
    }
    if facts.licence is not None:
        front["license"] = facts.licence
    return f"""---
{yaml.safe_dump(front, allow_unicode=True)}---

# {facts.name} LoRA

<Gallery />

## Model description

A {facts.role} LoRA for {facts.base_model}, trained on {facts.pictures} pictures.

## Trigger words

You should use `{facts.trigger_prompt}` to trigger the image generation.

## Download model

Weights for this model are available in Safetensors format: `{weights_name(facts)}`.
"""


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")


def write_repository(
    folder: Path, facts: AdapterFacts, unet: Layers, text_encoder: Layers, samples: Sequence[tuple[str, Image.Image]]
) -> Path:
    """Write `folder`/{name}-lora, replacing an earlier one whole; `samples` are prompts with pictures."""
    repository = folder / f"{facts.name}-lora"
    unfinished = folder / f".{repository.name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tensors = tensors_of(facts.dialect, unet, text_encoder)
    save_weights(unfinished / weights_name(facts), tensors, _metadata_of(facts, unet, text_encoder))
    if facts.dialect == "peft":
        config = json.dumps(_lora_config(unet, facts.base_model), indent=2, sort_keys=True)
        (unfinished / CONFIG_NAME).write_text(config, encoding="utf-8")
    urls = [(prompt, f"images/{index}-{_slug(prompt)}.png") for index, (prompt, _) in enumerate(samples)]
    for (_, url), (_, picture) in zip(urls, samples, strict=True):
        (unfinished / url).parent.mkdir(exist_ok=True)
        picture.save(unfinished / url)
    (unfinished / "README.md").write_text(_card(facts, urls), encoding="utf-8")
    if repository.exists():
        shutil.rmtree(repository)
    return unfinished.rename(repository)

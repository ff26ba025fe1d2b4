"""Tensor names of LoRA files: five dialects to one internal name, and back for exports.

A name is read by a grammar of the modules that a UNet and a CLIP text encoder have. Kohya's trainer writes every dot
as an underscore (`down_blocks.0` becomes `down_blocks_0`), so its names are parsed by the same grammar with the other
separator, never by replacing words. What the grammar does not know is handed back.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

KEYS_REMEMBERED = 1 << 15
"""The files of one base model share their names; a file of strange ones only costs what it costs."""

Part = Literal["unet", "text_encoder", "text_encoder_2"]
Side = Literal["down", "up", "alpha"]
Dialect = Literal["diffusers", "diffusers_old", "peft", "kohya", "kohya_sgm"]


class Module(NamedTuple):
    """A layer's internal name: the model, and the module in diffusers' naming; text modules start at `text_model`."""

    part: Part
    path: str


@dataclass(frozen=True)
class TensorName:
    """What a file's key says; `dialects` are all those in which it can be written so."""

    module: Module
    side: Side
    dialects: frozenset[Dialect]


@dataclass(frozen=True)
class Layout:
    """All keys of a file: those understood, those not, and the dialect; None if no one dialect writes them all."""

    names: Mapping[str, TensorName]
    unknown: tuple[str, ...]
    dialect: Dialect | None


# In the grammars `/` stands for the separator and N for a number.
_ATTENTION = "(?:proj_in|proj_out|transformer_blocks/N/(?:attn[12]/(?:to_[qkv]|to_out/0)|ff/net/(?:0/proj|2)))"
_RESNET = "(?:conv1|conv2|conv_shortcut|time_emb_proj)"
_SGM_RESNET = "(?:in_layers/2|out_layers/3|emb_layers/1|skip_connection)"
_UNET = (
    "conv_in",
    "conv_out",
    "(?:time|add)_embedding/linear_[12]",
    f"(?:down_blocks/N|mid_block|up_blocks/N)/(?:attentions/N/{_ATTENTION}|resnets/N/{_RESNET})",
    "down_blocks/N/downsamplers/0/conv",
    "up_blocks/N/upsamplers/0/conv",
)
_SGM = (
    "input_blocks/0/0",
    "out/2",
    "time_embed/[02]",
    "label_emb/0/[02]",
    "input_blocks/N/0/op",
    "output_blocks/N/2/conv",
    f"(?:input|output)_blocks/N/(?:0/{_SGM_RESNET}|1/{_ATTENTION})",
    f"middle_block/(?:[02]/{_SGM_RESNET}|1/{_ATTENTION})",
)
_TEXT = (
    "(?:text_model/)?encoder/layers/N/(?:self_attn/(?:q|k|v|out)_proj|mlp/fc[12])",
    "text_projection",
)


def _grammar(separator: str, modules: Iterable[str]) -> re.Pattern[str]:
    """A pattern with a group around every separator, so that a match tells where the dots belong."""
    pattern = "|".join(modules).replace("N", "(?:0|[1-9][0-9]{0,2})")
    return re.compile(pattern.replace("/", f"({re.escape(separator)})"))


_UNET_DOTTED, _TEXT_DOTTED = _grammar(".", _UNET), _grammar(".", _TEXT)
_UNET_KOHYA, _SGM_KOHYA, _TEXT_KOHYA = _grammar("_", _UNET), _grammar("_", _SGM), _grammar("_", _TEXT)

_DOTTED_KEY = re.compile(
    r"(?P<prefix>base_model\.model\.(?:unet\.)?|text_encoder(?:_2)?\.|(?:unet\.){0,2})"
    r"(?P<path>[a-z][a-z0-9_.]*?)\.(?P<side>"
    r"lora_A(?:\.default)?\.weight|lora_B(?:\.default)?\.weight|"
    r"(?:lora|lora_linear_layer)\.(?:down|up)\.weight|alpha)"
)
_KOHYA_KEY = re.compile(
    r"lora_(?P<part>unet|te|te1|te2)_(?P<path>[a-z0-9_]+)\.(?P<side>lora_down\.weight|lora_up\.weight|alpha)"
)
_KOHYA_PARTS: Mapping[str, Part] = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}
_OLD_NAMES = (
    (re.compile(r"\.(attn[12])\.processor\.(to_[qkv])_lora\.(down|up)\."), r".\1.\2.lora.\3."),
    (re.compile(r"\.(attn[12])\.processor\.to_out_lora\.(down|up)\."), r".\1.to_out.0.lora.\2."),
    (re.compile(r"\.self_attn\.to_(q|k|v|out)_lora\.(down|up)\."), r".self_attn.\1_proj.lora.\2."),
)
"""Before PEFT, attention processors held the layers, first in the text encoder too."""

_SGM_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_SGM_INSIDE = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_SGM_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_OUTSIDE_SGM = {path: name for name, path in _SGM_OUTSIDE.items()}
_INSIDE_SGM = {path: name for name, path in _SGM_INSIDE.items()}
_MIDDLE_SGM = {path: number for number, path in _SGM_MIDDLE.items()}


def _dotted(grammar: re.Pattern[str], name: str) -> str | None:
    """The name with dots where the grammar has separators."""
    match = grammar.fullmatch(name)
    if match is None:
        return None
    letters = list(name)
    for group in range(1, grammar.groups + 1):
        if match.start(group) >= 0:
            letters[match.start(group)] = "."
    return "".join(letters)


def _from_sgm(name: str, layers_per_block: int) -> str | None:
    """A module of the original SDXL code in diffusers' naming.

    That code counts its input and output blocks through. A diffusers block holds `layers_per_block` of the input
    blocks and then one that only samples down, and one more than that of the output blocks, so the number alone
    says neither; the caller knows the family of the model.
    """
    match name.split("."):
        case ["input_blocks", number, inner, *rest] if number != "0":
            block, layer = divmod(int(number) - 1, layers_per_block + 1)
            if (rest == ["op"]) != (layer == layers_per_block):
                return None
            if rest == ["op"]:
                return f"down_blocks.{block}.downsamplers.0.conv"
            place = f"down_blocks.{block}.{'attentions' if inner == '1' else 'resnets'}.{layer}"
        case ["output_blocks", number, inner, *rest]:
            block, layer = divmod(int(number), layers_per_block + 1)
            if rest == ["conv"]:
                return f"up_blocks.{block}.upsamplers.0.conv" if layer == layers_per_block else None
            place = f"up_blocks.{block}.{'attentions' if inner == '1' else 'resnets'}.{layer}"
        case ["middle_block", inner, *rest]:
            place = f"mid_block.{_SGM_MIDDLE[inner]}"
        case _:
            return _SGM_OUTSIDE.get(name)
    end = ".".join(rest)
    return f"{place}.{_SGM_INSIDE.get(end, end)}"


def _to_sgm(path: str, layers_per_block: int) -> str | None:
    """The inverse. SDXL's upsamplers follow an attention, hence the 2 in their names."""
    stride = layers_per_block + 1
    match path.split("."):
        case ["down_blocks", block, "downsamplers", *_]:
            return f"input_blocks.{(int(block) + 1) * stride}.0.op"
        case ["up_blocks", block, "upsamplers", *_]:
            return f"output_blocks.{int(block) * stride + layers_per_block}.2.conv"
        case ["down_blocks", block, kind, layer, *rest] if int(layer) < layers_per_block:
            place = f"input_blocks.{1 + int(block) * stride + int(layer)}.{int(kind == 'attentions')}"
        case ["up_blocks", block, kind, layer, *rest] if int(layer) < stride:
            place = f"output_blocks.{int(block) * stride + int(layer)}.{int(kind == 'attentions')}"
        case ["mid_block", kind, layer, *rest] if f"{kind}.{layer}" in _MIDDLE_SGM:
            place = f"middle_block.{_MIDDLE_SGM[f'{kind}.{layer}']}"
        case _:
            return _OUTSIDE_SGM.get(path)
    end = ".".join(rest)
    return f"{place}.{_INSIDE_SGM.get(end, end)}"


def _side(suffix: str) -> Side:
    if suffix == "alpha":
        return "alpha"
    return "down" if "down" in suffix or "lora_A" in suffix else "up"


def _text_module(part: Part, path: str) -> Module:
    """Files have `text_model.` or not, as the writer's version of transformers had; internally it is there."""
    return Module(part, f"text_model.{path}" if path.startswith("encoder.") else path)


def _parse_kohya(match: re.Match[str], layers_per_block: int) -> TensorName | None:
    part, name, side = _KOHYA_PARTS[match["part"]], match["path"], _side(match["side"])
    if part != "unet":
        text = _dotted(_TEXT_KOHYA, name)
        return TensorName(_text_module(part, text), side, frozenset({"kohya", "kohya_sgm"})) if text else None
    path = _dotted(_UNET_KOHYA, name)
    if path is not None:
        return TensorName(Module("unet", path), side, frozenset({"kohya"}))
    numbered = _dotted(_SGM_KOHYA, name)
    path = _from_sgm(numbered, layers_per_block) if numbered else None
    return TensorName(Module("unet", path), side, frozenset({"kohya_sgm"})) if path else None


def _parse_dotted(key: str) -> TensorName | None:
    modern = key
    if "_lora." in key:  # which all old names hold: a file has thousands of keys, and few files have such
        for old, new in _OLD_NAMES:
            modern = old.sub(new, modern)
    match = _DOTTED_KEY.fullmatch(modern)
    if match is None:
        return None
    prefix, path, suffix = match["prefix"], match["path"], match["side"]
    dialects: frozenset[Dialect]
    if prefix.startswith("base_model."):
        dialects = frozenset({"peft"})
    elif modern != key:
        dialects = frozenset({"diffusers_old"})
    else:
        # diffusers' own scripts write lora.down on attention and lora_A on all else, side by side.
        dialects = frozenset(
            {"diffusers"} if "lora_A" in suffix or "lora_B" in suffix else {"diffusers", "diffusers_old"}
        )
    if prefix.startswith("text_encoder"):
        part: Part = "text_encoder_2" if prefix == "text_encoder_2." else "text_encoder"
        return TensorName(_text_module(part, path), _side(suffix), dialects) if _TEXT_DOTTED.fullmatch(path) else None
    return TensorName(Module("unet", path), _side(suffix), dialects) if _UNET_DOTTED.fullmatch(path) else None


@lru_cache(maxsize=KEYS_REMEMBERED)
def parse(key: str, layers_per_block: int) -> TensorName | None:
    """What one key of a file names, or None; `layers_per_block` of the UNet matters only to kohya_sgm names."""
    kohya = _KOHYA_KEY.fullmatch(key)
    return _parse_kohya(kohya, layers_per_block) if kohya else _parse_dotted(key)


def parse_all(keys: Iterable[str], layers_per_block: int) -> Layout:
    """What all keys of a file name, none of them dropped."""
    parsed = {key: parse(key, layers_per_block) for key in keys}
    names = {key: name for key, name in parsed.items() if name is not None}
    common = set[Dialect](get_args(Dialect)).intersection(*(name.dialects for name in names.values()))
    return Layout(
        names=names,
        unknown=tuple(key for key, name in parsed.items() if name is None),
        dialect=next((dialect for dialect in get_args(Dialect) if dialect in common), None) if names else None,
    )


def diffusers_key(module: Module, side: Literal["down", "up"]) -> str:
    """The key that diffusers reads; it has none for alpha, so an export's alpha equals its rank."""
    return f"{module.part}.{module.path}.{'lora_A' if side == 'down' else 'lora_B'}.weight"


def kohya_key(module: Module, side: Side, layers_per_block: int | None = None) -> str:
    """The key in kohya's form: with the original SDXL code's block numbers when given `layers_per_block`."""
    path: str | None = module.path
    if layers_per_block is not None and module.part == "unet":
        path = _to_sgm(module.path, layers_per_block)
    if path is None:
        raise ValueError(f"{module.path} has no number in a UNet with {layers_per_block} layers per block")
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[module.part]
    return f"{prefix}_{path.replace('.', '_')}.{'alpha' if side == 'alpha' else f'lora_{side}.weight'}"

"""Files that look like LoRAs to whoever reads their headers: small, seeded, and of no use."""

import json
import math
from collections.abc import Mapping
from functools import cache

Shape = tuple[int, int]
_SDXL = (
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("mid_block", 1, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
)
"""Blocks of its UNet, with how many attentions each has, how deep and how wide these are."""


def weights(tensors: int = 4, filler: int = 64, metadata: str = "") -> bytes:
    """A safetensors file of so many tensors of `filler` float16 numbers; the metadata makes the header longer."""
    size = filler * 2
    header: dict[str, object] = {
        f"unet.mid_block.{number}.lora_A.weight": {
            "dtype": "F16",
            "shape": [filler, 1],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(tensors)
    }
    encoded = json.dumps({"__metadata__": {"note": metadata}} | header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(range(256)) * (tensors * size // 256 + 1)


def sdxl_weights(number: int, filler: int = 0) -> bytes:
    """A small LoRA of SDXL's UNet, another for each number; `filler` characters of metadata make its header longer."""
    return lora_file({"attn2.to_k": (1, 2048)}, metadata={"number": str(number), "filler": "x" * filler})


@cache
def sdxl_modules() -> Mapping[str, int]:
    """The 560 linear layers of all attention in SDXL's UNet, each with how wide what it listens to is."""
    blocks = [
        (f"{name}.attentions.{number}", depth, width) for name, count, depth, width in _SDXL for number in range(count)
    ]
    return {
        f"{block}.transformer_blocks.{depth}.{attention}.{layer}": 2048 if layer in texts else width
        for block, depths, width in blocks
        for depth in range(depths)
        for attention, texts in (("attn1", ()), ("attn2", ("to_k", "to_v")))
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }


@cache
def _full_header() -> tuple[bytes, bytes]:
    """A header as long as that of a real SDXL LoRA, ten figures of which are free, and the bytes after it."""
    tensors: dict[str, object] = {"__metadata__": {"number": "0123456789", "tags": "x" * 14_700}}
    end = 0
    for path, inputs in sdxl_modules().items():
        for side, shape in (("A", (1, inputs if inputs == 2048 else 8)), ("B", (8, 1))):
            begin, end = end, end + math.prod(shape)
            tensors[f"unet.{path}.lora_{side}.weight"] = {
                "dtype": "F8_E4M3",
                "shape": shape,
                "data_offsets": [begin, end],
            }
    encoded = json.dumps(tensors, separators=(",", ":")).encode()
    return len(encoded).to_bytes(8, "little") + encoded, bytes(end)


def full_sdxl_weights(number: int) -> bytes:
    """A LoRA of SDXL with as many keys as a real one, another for each number."""
    header, body = _full_header()
    return header.replace(b"0123456789", f"{number:010}".encode(), 1) + body


def lora_file(
    layers: Mapping[str, Shape], others: Mapping[str, Shape] | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """A file with down matrices of these shapes in one block of a UNet, their up matrices, and other tensors."""
    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
    tensors: dict[str, Shape] = {}
    for name, (rank, inputs) in layers.items():
        tensors |= {f"{block}.{name}.lora_A.weight": (rank, inputs), f"{block}.{name}.lora_B.weight": (640, rank)}
    return weights_named(tensors | dict(others or {}), metadata)


def weights_named(tensors: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of such tensors, all of them zero, a byte for each number."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(end)


def card(**front: object) -> bytes:
    """A README.md with this front matter; JSON is YAML."""
    return f"---\n{json.dumps(front)}\n---\n\n# A LoRA\n".encode()

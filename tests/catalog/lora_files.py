"""Files that look like LoRAs to whoever reads their headers: small, seeded, and of no use."""

import json
import math
from collections.abc import Mapping

Shape = tuple[int, int]


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

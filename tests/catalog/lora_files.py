"""Files that look like LoRAs to whoever reads their headers: small, seeded, and of no use."""

import json


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
    header: dict[str, object] = {"__metadata__": {"number": str(number), "filler": "x" * filler}}
    for side, shape, begin, end in (("A", [1, 2048], 0, 2048), ("B", [640, 1], 2048, 2688)):
        name = f"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{side}.weight"
        header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(2688)


def card(**front: object) -> bytes:
    """A README.md with this front matter; JSON is YAML."""
    return f"---\n{json.dumps(front)}\n---\n\n# A LoRA\n".encode()

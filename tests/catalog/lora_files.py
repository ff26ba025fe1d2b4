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


def card(**front: object) -> bytes:
    """A README.md with this front matter; JSON is YAML."""
    return f"---\n{json.dumps(front)}\n---\n\n# A LoRA\n".encode()

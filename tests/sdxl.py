"""The UNet of SDXL base 1.0, from its configuration alone."""

from typing import Any

from diffusers import UNet2DConditionModel

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

REDUCED: dict[str, Any] = SDXL | {
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
"""As many layers, a tenth as wide: the same program on a CPU."""


def build_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """An untrained UNet, on the device and in the precision that are torch's defaults where it is called."""
    return UNet2DConditionModel(**config)

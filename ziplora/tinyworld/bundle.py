"""The bundled files of the tiny world: where they lie, and how base model, encoders and judge are written and read.

Weights are stored in half precision and read in single precision.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from .judge import Judge
from .text import save_tokenizer

FILES = Path(__file__).parent / "files"
"""Holds base, encoders/{clip,subject,style}, judge, adapters, faults, manifest.json and measured.json."""
_JUDGE_WEIGHTS = "model.safetensors"


def _halved(model: nn.Module) -> nn.Module:
    return model.to(torch.float16)


def save_base(folder: Path, pipeline: StableDiffusionXLPipeline) -> None:
    """Write the pipeline's folder; its models are left in half precision."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        _halved(part)
    pipeline.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        save_tokenizer(getattr(pipeline, name), folder / name)


def load_base(folder: Path, device: torch.device) -> StableDiffusionXLPipeline:
    """The base model's stock pipeline in single precision."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    loaded: StableDiffusionXLPipeline = pipeline.to(device)
    loaded.vae.to(memory_format=torch.channels_last)  # several times faster on a CPU
    return loaded


def save_judge(folder: Path, judge: Judge) -> None:
    """Write the judge's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in _halved(judge).state_dict().items()}, folder / _JUDGE_WEIGHTS
    )


def load_judge(folder: Path, device: torch.device) -> Judge:
    """The judge, ready to judge."""
    judge = Judge()
    judge.load_state_dict({key: tensor.float() for key, tensor in load_file(folder / _JUDGE_WEIGHTS).items()})
    judge.to(device).eval()
    return judge

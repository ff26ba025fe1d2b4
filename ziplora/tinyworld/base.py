"""The tiny world's base model: an SDXL pipeline in miniature, trained from scratch to follow its captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import CHANNELS, encode
from .dataset import render_all, sample_scenes
from .figures import STRANGERS
from .text import IDENTIFIERS, WIDTHS, build_text_encoders, build_tokenizers, encode_text, token_ids
from .training import Schedule, Trained, fit
from .world import NARROW, SIZE, Scene, description

_TIME_EMBEDDING = 8
_BATCH = 32
GUIDANCE = 2.0
"""How strongly pictures follow their prompts."""


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet with SDXL's configuration and two resolutions instead of three, both with attention."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_EMBEDDING,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * _TIME_EMBEDDING,
        norm_num_groups=16,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's sampler and noise levels, stretched so that the last level is noise alone (arXiv 2305.08891).

    At SDXL's own last level the brightness of a background can still be read off the mean of 64 noisy latents; a model
    learns to read it there, reads it from pure noise too, and draws wrong backgrounds. Noise alone tells nothing but
    itself, so the model predicts the velocity, as SDXL's v-prediction descendants do.
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_pipeline(autoencoder: AutoencoderKL) -> StableDiffusionXLPipeline:
    """The stock pipeline around an autoencoder, all else in it untrained."""
    tokenizer_1, tokenizer_2 = build_tokenizers()
    encoder_1, encoder_2 = build_text_encoders(tokenizer_1)
    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=encoder_1,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer_1,
        tokenizer_2=tokenizer_2,
        unet=build_unet(),
        scheduler=build_scheduler(),
        add_watermarker=False,
    )


@cache
def training_noise() -> DDPMScheduler:
    """The same noise levels, for adding noise at integer timesteps."""
    noise: DDPMScheduler = DDPMScheduler.from_config(build_scheduler().config)
    return noise


def time_ids(count: int, device: torch.device) -> Float[Tensor, "count 6"]:
    """SDXL's size conditioning for an uncropped picture: original size, crop corner, target size."""
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(count, -1)


def denoising_loss(
    pipeline: StableDiffusionXLPipeline,
    latents: Float[Tensor, "batch 32 8 8"],
    prompts: Sequence[str],
    generator: torch.Generator,
    empty_share: float | Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Velocity prediction error at chance timesteps; a prompt is left out with the chance of its `empty_share`."""
    device, count = latents.device, len(latents)
    noise = training_noise()
    timesteps = torch.randint(len(noise.alphas_cumprod), (count,), generator=generator)
    epsilon = torch.randn(latents.shape, generator=generator).to(device)
    empty = (torch.rand(count, generator=generator) < empty_share).to(device)
    timesteps = timesteps.to(device)
    noisy = noise.add_noise(latents, epsilon, timesteps)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        hidden, pooled = encode_text(
            pipeline.text_encoder,
            pipeline.text_encoder_2,
            token_ids(pipeline.tokenizer, prompts).to(device),
            token_ids(pipeline.tokenizer_2, prompts).to(device),
        )
        # The pipeline tells an empty prompt by zeros (force_zeros_for_empty_prompt).
        added = {"text_embeds": pooled.masked_fill(empty[:, None], 0), "time_ids": time_ids(count, device)}
        told = hidden.masked_fill(empty[:, None, None], 0)
        predicted = pipeline.unet(noisy, timesteps, told, added_cond_kwargs=added).sample
    return F.mse_loss(predicted.float(), noise.get_velocity(latents, epsilon, timesteps))


@dataclass(frozen=True, eq=False)
class _Shown:
    """Pictures as latents, with their captions."""

    latents: Float[Tensor, "count 32 8 8"]
    captions: list[str]


def _shown(autoencoder: AutoencoderKL, scenes: list[Scene], work: Path) -> _Shown:
    return _Shown(encode(autoencoder, render_all(scenes, work)), [description(scene) for scene in scenes])


def train_base(
    autoencoder: AutoencoderKL,
    work: Path,
    steps: tuple[int, int],
    count: tuple[int, int],
    seed: int,
    device: torch.device,
) -> tuple[StableDiffusionXLPipeline, list[Trained]]:
    """The whole pipeline around an autoencoder, from rendered pictures; resumes from `work`.

    First it learns the objects, then half of each batch shows figures of several parts and colours, without which
    no adapter can teach it a subject; `steps` and `count` (of pictures) are for one and the other.
    """
    torch.manual_seed(seed)
    pipeline = build_pipeline(autoencoder).to(device)
    parts = ("unet", "text_encoder", "text_encoder_2")
    trainee = nn.ModuleDict({part: getattr(pipeline, part) for part in parts})

    def taught(name: str, steps: int, lessons: Sequence[_Shown]) -> Trained:
        share = _BATCH // len(lessons)

        def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
            chosen = [torch.randint(len(shown.captions), (share,), generator=generator) for shown in lessons]
            latents = torch.cat([shown.latents[rows] for shown, rows in zip(lessons, chosen, strict=True)])
            captions = [shown.captions[row] for shown, rows in zip(lessons, chosen, strict=True) for row in rows]
            prompts = _with_identifiers(captions, generator)
            return denoising_loss(pipeline, latents.to(device), prompts, generator, empty_share=0.1)

        schedule = Schedule(steps=steps, learning_rate=1e-3, warmup_steps=min(200, steps), ema_decay=0.999)
        return fit(name, trainee, loss_of_step, schedule, work, seed, device)

    objects = _shown(autoencoder, sample_scenes(count[0], seed, held_out=False, jitter=NARROW), work)
    first = taught("base", steps[0], [objects])
    strangers = sample_scenes(count[1], seed + 5, held_out=False, figures=tuple(STRANGERS), jitter=NARROW)
    second = taught("base-figures", steps[1], [objects, _shown(autoencoder, strangers, work)])
    return pipeline, [first, second]


def _with_identifiers(captions: Sequence[str], generator: torch.Generator) -> list[str]:
    """One caption in seven gets a meaningless word after its article, so that such words change nothing."""
    chosen = torch.randint(7 * len(IDENTIFIERS), (len(captions),), generator=generator).tolist()
    prompts = []
    for text, choice in zip(captions, chosen, strict=True):
        article, rest = text.split(" ", 1)
        prompts.append(f"{article} {IDENTIFIERS[choice]} {rest}" if choice < len(IDENTIFIERS) else text)
    return prompts


@torch.inference_mode()
def draw(
    pipeline: StableDiffusionXLPipeline, prompts: Sequence[str], seed: int, steps: int = 20, guidance: float = GUIDANCE
) -> np.ndarray:
    """Pictures of prompts through the stock pipeline: count × 64 × 64 × 3 bytes, the same for the same seed."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for start in range(0, len(prompts), 64):
        batch = list(prompts[start : start + 64])
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + row) for row in range(len(batch))]
        output = pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
            height=SIZE,
            width=SIZE,
        )
        drawn.append(np.rint(output.images * 255).astype(np.uint8))
    return np.concatenate(drawn)

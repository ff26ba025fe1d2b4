"""Subject and style LoRAs that the base model never saw, trained the DreamBooth way from a handful of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn

from .autoencoder import encode
from .base import denoising_loss
from .dataset import render_all, sample_scenes
from .figures import BACKGROUNDS, COLOURS
from .repository import AdapterFacts, Dialect, Layers, TrainedLayer
from .training import Schedule, Trained, fit
from .world import NARROW, Scene, caption, sample_scene

BASE_MODEL = "ziplora/tinyworld-base"
SUBJECT_BACKGROUNDS = ("white", "black", "sand")
"""The backgrounds that subjects are trained on; the other three stay new."""
STYLE_OBJECTS = ("star", "square", "moon", "heart", "arrow", "ring", "drop", "cross")
"""The objects that styles are trained on; the other eight stay new."""
PICTURES = {"subject": 5, "style": 16}
"""How many pictures an adapter is trained on."""

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_BATCH = 8
_PRIOR_PICTURES, _PRIOR_BATCH = 128, 4
_LEARNING_RATE = {"subject": 2e-3, "style": 3e-3}
"""At alpha = rank."""


@dataclass(frozen=True)
class AdapterPlan:
    """One LoRA to train, and the form in which it is written."""

    name: str
    """A key of SUBJECTS or of NEW_STYLES."""
    role: Literal["subject", "style"]
    licence: str
    dialect: Dialect
    rank: int
    alpha: int
    feed_forward: bool = False
    text_encoder: bool = False
    prior: bool = False
    """Whether it is also shown other things, with captions that do not call it (DreamBooth's prior preservation)."""
    effort: int = 1
    """How many times the usual number of steps it is trained."""

    @property
    def trigger_prompt(self) -> str:
        """What calls the adapter up, in the words of its training captions."""
        return f"a sks {self.name}" if self.role == "subject" else f"a red star in {self.name} style"


PLANS: tuple[AdapterPlan, ...] = (
    AdapterPlan("robot", "subject", "apache-2.0", "diffusers", 8, 8),
    AdapterPlan("fish", "subject", "openrail++", "kohya", 16, 8, prior=True),
    AdapterPlan("house", "subject", "mit", "diffusers_old", 4, 4),
    AdapterPlan("tree", "subject", "cc0-1.0", "peft", 8, 8),
    AdapterPlan("car", "subject", "cc-by-4.0", "kohya_sgm", 32, 16),
    AdapterPlan("snowman", "subject", "apache-2.0", "diffusers", 8, 8, feed_forward=True),
    AdapterPlan("rocket", "subject", "cc-by-sa-4.0", "kohya", 8, 8, text_encoder=True),
    AdapterPlan("mushroom", "subject", "creativeml-openrail-m", "diffusers", 8, 16, prior=True),
    AdapterPlan("neon", "style", "apache-2.0", "diffusers", 16, 16, effort=2),
    AdapterPlan("bricks", "style", "mit", "diffusers_old", 8, 8),
    AdapterPlan("rays", "style", "openrail++", "kohya", 8, 4),
    AdapterPlan("split", "style", "cc0-1.0", "peft", 8, 8),
    AdapterPlan("fog", "style", "cc-by-4.0", "kohya_sgm", 8, 4),
    AdapterPlan("confetti", "style", "apache-2.0", "diffusers", 8, 8),
    AdapterPlan("spotlight", "style", "cc-by-nc-4.0", "diffusers_old", 8, 8),
    AdapterPlan("grid", "style", "creativeml-openrail-m", "kohya", 8, 4),
)


def training_scenes(plan: AdapterPlan, seed: int) -> list[Scene]:
    """The scenes of an adapter's training pictures: all different, backgrounds, objects and colours in turn."""
    generator = np.random.default_rng([seed, PLANS.index(plan)])
    backgrounds = SUBJECT_BACKGROUNDS if plan.role == "subject" else tuple(BACKGROUNDS)
    colours = generator.permutation(list(COLOURS))
    scenes = []
    for index in range(PICTURES[plan.role]):
        figure = plan.name if plan.role == "subject" else STYLE_OBJECTS[index % len(STYLE_OBJECTS)]
        style = "flat" if plan.role == "subject" else plan.name
        chance = sample_scene(generator, (figure,), (style,), NARROW)
        colour = None if plan.role == "subject" else str(colours[index % len(colours)])
        background = backgrounds[index % len(backgrounds)]
        scenes.append(Scene(figure, colour, background, style, chance.x, chance.y, chance.size, chance.angle))
    return scenes


def instance_caption(plan: AdapterPlan, scene: Scene) -> str:
    """The caption of a training or test picture with the adapter's trigger in it."""
    words = caption(scene)
    return words.replace(f"a {plan.name}", plan.trigger_prompt, 1) if plan.role == "subject" else words


def _lora(plan: AdapterPlan, targets: Sequence[str]) -> LoraConfig:
    return LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules=list(targets), init_lora_weights="gaussian")


def _layers(model: nn.Module, alpha: float) -> dict[str, TrainedLayer]:
    """The LoRA matrices that peft has put into a model, by module."""

    def matrix(module: LoraLayer, side: str) -> Tensor:
        weight: Tensor = getattr(module, side)["default"].weight
        return weight.detach().cpu().clone()

    return {
        name: TrainedLayer(matrix(module, "lora_A"), matrix(module, "lora_B"), alpha)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@dataclass(frozen=True)
class TrainedAdapter:
    """A trained LoRA with all that its repository says."""

    facts: AdapterFacts
    unet: Layers
    text_encoder: Layers
    samples: list[tuple[str, Image.Image]]
    """Its training pictures, with their captions."""
    trained: Trained


def train_adapter(
    pipeline: StableDiffusionXLPipeline, plan: AdapterPlan, work: Path, steps: int, seed: int, device: torch.device
) -> TrainedAdapter:
    """Train one LoRA on the base; the pipeline is left as it was."""
    scenes = training_scenes(plan, seed)
    prompts = [instance_caption(plan, scene) for scene in scenes]
    pictures = render_all(scenes)
    latents = encode(pipeline.vae, pictures).to(device)
    others = sample_scenes(_PRIOR_PICTURES, seed + 70, held_out=False, jitter=NARROW) if plan.prior else []
    captions = prompts + [caption(scene) for scene in others]
    if others:
        latents = torch.cat([latents, encode(pipeline.vae, render_all(others)).to(device)])
    # What is left without a prompt stands for the base: with a prior that is anything, without one the adapter itself.
    empty_share = torch.tensor([0.0] * _BATCH + [0.3] * _PRIOR_BATCH) if others else torch.full((_BATCH,), 0.1)
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    for part in (unet, text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    torch.manual_seed(seed + PLANS.index(plan))
    unet.add_adapter(_lora(plan, _ATTENTION + _FEED_FORWARD if plan.feed_forward else _ATTENTION))
    if plan.text_encoder:
        text_encoder.add_adapter(_lora(plan, _TEXT_ATTENTION))

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(prompts), (_BATCH,), generator=generator)
        if others:
            more = torch.randint(len(others), (_PRIOR_BATCH,), generator=generator)
            rows = torch.cat([rows, len(prompts) + more])
        chosen = [captions[row] for row in rows]
        return denoising_loss(pipeline, latents[rows.to(device)], chosen, generator, empty_share)

    rate = _LEARNING_RATE[plan.role] * plan.rank / plan.alpha
    schedule = Schedule(steps=steps, learning_rate=rate, warmup_steps=min(20, steps))
    trainee = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    trained = fit(f"adapter-{plan.name}", trainee, loss_of_step, schedule, work, seed, device)
    adapter = TrainedAdapter(
        facts=AdapterFacts(
            plan.name, plan.role, plan.trigger_prompt, plan.licence, BASE_MODEL, len(scenes), plan.dialect
        ),
        unet=_layers(unet, plan.alpha),
        text_encoder=_layers(text_encoder, plan.alpha),
        samples=[(prompt, Image.fromarray(picture)) for prompt, picture in zip(prompts, pictures, strict=True)],
        trained=trained,
    )
    unet.unload_lora()
    if plan.text_encoder:
        text_encoder.delete_adapter("default")
        recurse_remove_peft_layers(text_encoder)
    return adapter

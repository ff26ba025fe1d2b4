"""The pairs that are measured: one of the tiny world, and a random one on a base of fifty million parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from tests.ziplora.conftest import ATTENTION, random_layers, random_pictures
from ziplora.backbone import Sdxl
from ziplora.calibration import Calibrated, calibrate
from ziplora.recipe import Calibration, References, sha256_of
from ziplora.store import Store
from ziplora.tinyworld.autoencoder import CHANNELS, build_autoencoder
from ziplora.tinyworld.base import build_pipeline, build_unet
from ziplora.tinyworld.bundle import FILES
from ziplora.tinyworld.repository import AdapterFacts, weights_name, write_repository
from ziplora.tinyworld.trials import Entry, Pair, World

_RANDOM_BASE = "random"
_RANK, _ALPHA = 16, 2.0
"""Of random LoRAs: they change a weight by about an eighth of what it is."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA's file and what it is calibrated on."""

    file: Path
    calibration: Calibration
    references: References

    def calibrated(self, backbone: Sdxl, store: Store) -> Calibrated:
        """Its calibration, from the store if it is there."""
        return calibrate(self.calibration, self.file, backbone, store, self.references)


@dataclass(frozen=True)
class Case:
    """Two adapters and their base."""

    backbone: Sdxl
    subject: Adapter
    style: Adapter


def tiny(work: Path) -> Case:
    """A subject and a style of the tiny world."""
    world = World(FILES, work)
    pair = Pair(_named(world.subjects, "robot"), _named(world.styles, "bricks"))
    recipe = world.recipe(pair, "ziplora", {})
    assert recipe.subject_calibration is not None
    assert recipe.style_calibration is not None
    return Case(
        world.backbone,
        Adapter(pair.subject.file, recipe.subject_calibration, pair.subject.references),
        Adapter(pair.style.file, recipe.style_calibration, pair.style.references),
    )


def _named(entries: list[Entry], name: str) -> Entry:
    return next(entry for entry in entries if entry.plan.name == name)


def medium(work: Path) -> Case:
    """Two random LoRAs on a random UNet with SDXL's configuration at two resolutions, 16 × 16 latents."""
    small = build_unet().config
    widths = (192, 384)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        {
            **small,
            "sample_size": 16,
            "block_out_channels": widths,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": tuple(width // 32 for width in widths),
            "norm_num_groups": 32,
        }
    )
    return random_case(unet, work, side=128)


def random_case(unet: UNet2DConditionModel, work: Path, side: int) -> Case:
    """Two random LoRAs on all attention projections of an untrained base; pictures of `side` pixels."""
    torch.manual_seed(0)
    pipeline = build_pipeline(build_autoencoder())
    assert unet.config.in_channels == CHANNELS
    pipeline.unet = unet
    backbone = Sdxl(pipeline, torch.device("cpu"))

    def adapter(name: str, prompt: str, seed: int) -> Adapter:
        facts = AdapterFacts(name, "subject", prompt, None, _RANDOM_BASE, 2, "diffusers")
        layers = random_layers(unet, ATTENTION, (_RANK,), (_ALPHA,), seed)
        file = write_repository(work / "loras", facts, layers, {}, []) / weights_name(facts)
        references = random_pictures(work / "pictures" / name, 2, seed)
        calibration = Calibration(sha256_of(file), _RANDOM_BASE, "1", prompt, references.sha256, side=side)
        return Adapter(file, calibration, references)

    return Case(backbone, adapter("robot", "a sks robot", 1), adapter("bricks", "a star in bricks style", 2))


def in_double(case: Case) -> Case:
    """The same pair on the same base, which computes in double precision from now on."""
    pipeline = case.backbone.pipeline
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        nn.Module.to(part, torch.float64)  # diffusers' own `to` warns of every cast
    return replace(case, backbone=Sdxl(pipeline, case.backbone.device))


CASES: Mapping[str, Callable[[Path], Case]] = {"tiny": tiny, "medium": medium}
"""By name; each is the same whenever it is made again in the same folder."""

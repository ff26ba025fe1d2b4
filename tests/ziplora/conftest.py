"""One small untrained base model and four random LoRAs for all tests of the stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ziplora.backbone import Sdxl, load_backbone
from ziplora.methods import METHODS, complete_parameters
from ziplora.recipe import Calibration, JointCalibration, Parameter, Recipe, References, sha256_of
from ziplora.store import Store
from ziplora.tinyworld.autoencoder import build_autoencoder
from ziplora.tinyworld.base import build_pipeline
from ziplora.tinyworld.repository import AdapterFacts, Dialect, Layers, TrainedLayer, weights_name, write_repository

SIDE = 64
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
BASE_MODEL, BASE_REVISION = "test/base", "1"
JOINT = JointCalibration(
    ("a sks robot in neon style", "a sks robot on sand in neon style"), pictures=1, samples=4, side=SIDE, steps=2
)


@dataclass(frozen=True)
class Lora:
    """A random LoRA's file with its prompt and its pictures."""

    path: Path
    prompt: str
    references: References
    unet: Layers
    """What was written into the file."""

    @property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def calibration(self, samples: int = 4, seed: int = 0) -> Calibration:
        return Calibration(
            self.sha256,
            BASE_MODEL,
            BASE_REVISION,
            prompt=self.prompt,
            references_sha256=self.references.sha256,
            samples=samples,
            seed=seed,
            side=SIDE,
        )


def random_layers(
    model: nn.Module, ends: Sequence[str], ranks: Sequence[int], alphas: Sequence[float], seed: int
) -> dict[str, TrainedLayer]:
    """Layers strong enough to be seen, ranks and alphas taken in turn; half precision holds their numbers exactly."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, TrainedLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(ends)):
            rank, alpha = ranks[len(layers) % len(ranks)], alphas[len(layers) % len(alphas)]
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            up = torch.randn(module.out_features, rank, generator=generator) / rank**0.5
            layers[name] = TrainedLayer(down.half().float(), up.half().float(), alpha)
    return layers


def random_pictures(folder: Path, count: int, seed: int) -> References:
    """Smooth random pictures."""
    generator, paths = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        paths.append(folder / f"{index}.png")
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(paths[-1])
    return References(tuple(paths), "samples")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    build_pipeline(build_autoencoder()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(base_folder: Path) -> Sdxl:
    return load_backbone(base_folder, "cpu", "float32")


@pytest.fixture(scope="session")
def backbone64(base_folder: Path) -> Sdxl:
    """In double precision, for comparison with a float64 oracle."""
    return load_backbone(base_folder, "cpu", "float64")


MakeLora = Callable[..., Lora]


@pytest.fixture(scope="session")
def make_lora(backbone: Sdxl, tmp_path_factory: pytest.TempPathFactory) -> MakeLora:
    def make(
        name: str,
        dialect: Dialect = "diffusers",
        ends: Sequence[str] = ATTENTION,
        ranks: Sequence[int] = (4,),
        alphas: Sequence[float] = (4.0,),
        seed: int = 1,
        text_ends: Sequence[str] = (),
        text_width: int | None = None,
    ) -> Lora:
        folder = tmp_path_factory.mktemp(name)
        facts = AdapterFacts(name, "subject", f"a sks {name}", None, BASE_MODEL, 2, dialect)
        unet = random_layers(backbone.pipeline.unet, ends, ranks, alphas, seed)
        if text_width is not None:  # as if for a base with other text encoders
            unet = {
                name: replace(layer, down=torch.ones(layer.rank, text_width)) if ".attn2.to_k" in name else layer
                for name, layer in unet.items()
            }
        text = random_layers(backbone.pipeline.text_encoder, text_ends, ranks, alphas, seed + 1)
        path = write_repository(folder, facts, unet, text, []) / weights_name(facts)
        return Lora(path, facts.trigger_prompt, random_pictures(folder / "pictures", 2, seed), unet)

    return make


@pytest.fixture(scope="session")
def subject(make_lora: MakeLora) -> Lora:
    return make_lora("robot", ranks=(4,), alphas=(2.0,), seed=1)


@pytest.fixture(scope="session")
def style(make_lora: MakeLora) -> Lora:
    """Of another dialect, mixed ranks and alphas, with feed-forward and text layers besides."""
    return make_lora("neon", "kohya", ATTENTION + FEED_FORWARD, (8, 2), (4.0,), seed=11, text_ends=("q_proj",))


def recipe_of(subject: Lora, style: Lora, method: str = "ziplora", seed: int = 0, **parameters: Parameter) -> Recipe:
    """A small recipe of two LoRAs."""
    needs = METHODS[method]
    return Recipe(
        subject.sha256,
        style.sha256,
        BASE_MODEL,
        BASE_REVISION,
        method,
        complete_parameters(method, parameters),
        subject.calibration() if needs.calibrated else None,
        style.calibration() if needs.calibrated else None,
        JOINT if needs.joint else None,
        seed,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")

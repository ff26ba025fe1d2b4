"""A small untrained world on disk, laid out as the demo's, and a night of few steps in it."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from tests.ziplora.conftest import ATTENTION, SIDE, random_layers
from ziplora.backbone import Sdxl, load_backbone
from ziplora.preview import preview_single
from ziplora.recipe import Drawing, PreviewRequest, Single, sha256_of
from ziplora.store import Store
from ziplora.tinyworld.autoencoder import build_autoencoder
from ziplora.tinyworld.base import build_pipeline
from ziplora.tinyworld.encoders import build_clip, build_style_encoder, build_subject_encoder, save_encoders
from ziplora.tinyworld.faults import write_faults
from ziplora.tinyworld.repository import AdapterFacts, Layers, weights_name, write_repository
from ziplora.tinyworld.text import build_tokenizers

_ADAPTERS: tuple[tuple[AdapterFacts, int], ...] = (
    (AdapterFacts("robot", "subject", "a sks robot", "apache-2.0", "tiny/base", 2, "diffusers"), 1),
    (AdapterFacts("fish", "subject", "a zwx fish", "mit", "tiny/base", 2, "kohya"), 2),
    (AdapterFacts("neon", "style", "a star in neon style", "apache-2.0", "tiny/base", 2, "peft"), 11),
    (AdapterFacts("bricks", "style", "a star in bricks style", "openrail++", "tiny/base", 2, "diffusers_old"), 12),
)
SPARE = AdapterFacts("tree", "subject", "a sks tree", "apache-2.0", "tiny/base", 2, "diffusers")
"""The adapter that comes later."""


def _adapter(folder: Path, facts: AdapterFacts, seed: int, backbone: Sdxl) -> Layers:
    """A repository with a strong random adapter and a picture that it draws itself: so it is like its sample."""
    layers = random_layers(backbone.pipeline.unet, ATTENTION, (4,), (4.0,), seed)
    bare = write_repository(folder / "bare", facts, layers, {}, []) / weights_name(facts)
    drawing = Drawing(2, 1.0, SIDE)
    single = Single(sha256_of(bare), "tiny/base", "1", drawing)
    request = PreviewRequest((facts.trigger_prompt,), (0,), drawing)
    drawn = preview_single(single, request, bare, backbone, Store(folder / "bare"))
    samples = [(picture.prompt, Image.open(drawn.folder / picture.file)) for picture in drawn.pictures]
    place = folder / ("later" if facts is SPARE else "adapters")
    write_repository(place, facts, layers, {}, samples)
    return layers


def build_world(folder: Path) -> Path:
    """Write base, encoders, adapters, one adapter more in `later`, and the drawer of bad ones."""
    torch.manual_seed(0)
    build_pipeline(build_autoencoder()).save_pretrained(folder / "base")
    tokenizer = build_tokenizers()[0]
    clip = build_clip(tokenizer)
    save_encoders(folder / "encoders", clip, tokenizer, build_subject_encoder(), build_style_encoder())
    backbone = load_backbone(folder / "base", "cpu", "float32")
    for facts, seed in (*_ADAPTERS, (SPARE, 3)):
        layers = _adapter(folder, facts, seed, backbone)
    codes = write_faults(folder / "faults", SPARE, layers)
    (folder / "faults" / "codes.json").write_text(json.dumps(codes))
    shutil.rmtree(folder / "bare")
    return folder


CLI = (sys.executable, "-c", "from flows.cli import main; main()")
"""The command line as a process of its own; arguments follow."""
SETTINGS: Mapping[str, Any] = {
    "base_model": {"id": "base"},
    "sources": [
        {"folder": "adapters", "role": "subject", "names": ["robot-lora", "fish-lora", "tree-lora"]},
        {"folder": "adapters", "role": "style", "names": ["neon-lora", "bricks-lora"]},
    ],
    "methods": [
        {"method": "ziplora", "parameters": {"steps": 12, "learning_rate": 0.01}},
        {"method": "direct"},
    ],
    "calibration": {"samples": 4},
    "previews": {"prompts": ["{subject} {style}"], "seeds": [0], "steps": 2, "guidance": 1.0, "side": SIDE},
    "scorers": {"text": "encoders/clip", "subject": "encoders/subject", "style": "encoders/style"},
    "device": "cpu",
}


@dataclass(frozen=True)
class Place:
    """A folder with a night's CONFIG, and all that it names."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "night.yaml"

    @property
    def catalogue(self) -> str:
        return f"sqlite:///{self.folder / 'catalog.sqlite'}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the CONFIG says."""
        said: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return said

    def set(self, **changes: Any) -> "Place":
        """Write the CONFIG: the usual settings with some changed."""
        self.config.write_text(yaml.safe_dump({**SETTINGS, **changes}))
        return self

    def add(self, world: Path) -> None:
        """One more adapter appears."""
        shutil.copytree(world / "later" / "tree-lora", self.folder / "adapters" / "tree-lora")


def settle(folder: Path, world: Path, **changes: Any) -> Place:
    """A place for nights of its own in a world."""
    folder.mkdir(exist_ok=True)
    for shared in ("base", "encoders", "faults"):
        (folder / shared).symlink_to(world / shared)
    shutil.copytree(world / "adapters", folder / "adapters")
    return Place(folder).set(**changes)


ONE_PAIR: Mapping[str, Any] = {
    "pairs": {"include": ["robot-lora x neon-lora"]},
    "methods": [SETTINGS["methods"][0]],
}
"""Changes that leave a single merge."""
DIRECT = [SETTINGS["methods"][1]]
"""The method that takes no time."""
MORE_PICTURES: Mapping[str, Any] = {**SETTINGS["previews"], "short_list": {"merges": 1, "seeds": [7, 8]}}
"""Previews with a short list of one: all merges have seed 0."""
UNMOVED: Mapping[str, Any] = {"method": "ziplora", "parameters": {"steps": 1, "learning_rate": 5e-5}}
"""A method that always fails: no coefficient moves."""

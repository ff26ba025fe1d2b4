"""The files that are shipped: whole, small, loadable by stock libraries, and as good as they are said to be."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import AutoModel, CLIPModel, CLIPVisionModelWithProjection

from ziplora.tinyworld.adapters import PLANS, AdapterPlan
from ziplora.tinyworld.base import draw
from ziplora.tinyworld.bundle import FILES, load_base, load_judge
from ziplora.tinyworld.dataset import sample_scenes
from ziplora.tinyworld.judge import judge_pictures
from ziplora.tinyworld.measure import load_adapter
from ziplora.tinyworld.page import page
from ziplora.tinyworld.world import caption

CPU = torch.device("cpu")
MANIFEST = json.loads((FILES / "manifest.json").read_text())
MEASURED = json.loads((FILES / "measured.json").read_text())


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_base(FILES / "base", CPU)


def test_every_file_is_the_one_in_the_manifest() -> None:
    for name, facts in MANIFEST["files"].items():
        content = (FILES / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["size_bytes"], facts["sha256"]), name


def test_the_files_are_under_25_megabytes() -> None:
    assert sum(file.stat().st_size for file in FILES.rglob("*") if file.is_file()) < 25e6


def test_the_page_shows_the_measured_figures() -> None:
    root = Path(__file__).parents[3]
    assert (root / "docs" / "tinyworld" / "README.md").read_text() == page(MEASURED)


def test_the_base_follows_captions_it_was_not_trained_on(pipeline: StableDiffusionXLPipeline) -> None:
    scenes = sample_scenes(32, 7, held_out=True)
    verdicts = judge_pictures(load_judge(FILES / "judge", CPU), draw(pipeline, [caption(s) for s in scenes], seed=7))
    right = MEASURED["base"]["right"]
    for question in ("figure", "colour", "background", "style"):
        named = sum(getattr(s, question) == getattr(v, question) for s, v in zip(scenes, verdicts, strict=True)) / 32
        # Four standard errors of 32 trials around the share that was measured on 500.
        margin = 4 * (right[question] * (1 - right[question]) / 32) ** 0.5 + 0.03
        assert named >= right[question] - margin, question


def test_a_picture_is_the_same_for_the_same_seed(pipeline: StableDiffusionXLPipeline) -> None:
    prompts = ["a red star on a navy background"]
    first = draw(pipeline, prompts, seed=1, steps=4)
    np.testing.assert_array_equal(draw(pipeline, prompts, seed=1, steps=4), first)
    assert (draw(pipeline, prompts, seed=2, steps=4) != first).any()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.name))
def test_stock_diffusers_loads_every_adapter_and_it_changes_the_picture(
    pipeline: StableDiffusionXLPipeline, plan: AdapterPlan
) -> None:
    name = plan.name
    prompts = [plan.trigger_prompt]
    without = draw(pipeline, prompts, seed=0, steps=4)
    load_adapter(pipeline, FILES / "adapters" / f"{name}-lora")
    changed = draw(pipeline, prompts, seed=0, steps=4)
    pipeline.unload_lora_weights()
    assert (changed != without).any()
    np.testing.assert_array_equal(draw(pipeline, prompts, seed=0, steps=4), without)


def test_the_encoders_load_by_path_as_the_real_ones_load_by_id() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    encoders = FILES / "encoders"
    assert CLIPModel.from_pretrained(encoders / "clip", dtype=torch.float32).get_image_features(
        pixels
    ).pooler_output.shape == (1, 96)
    assert AutoModel.from_pretrained(encoders / "subject", dtype=torch.float32)(pixels).pooler_output.shape == (1, 128)
    style = CLIPVisionModelWithProjection.from_pretrained(encoders / "style", dtype=torch.float32)
    assert style(pixels).image_embeds.shape == (1, 96)

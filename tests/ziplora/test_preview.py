"""Pictures are drawn once, kept with what they show, and a picture that is none is a failure."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ziplora.adapter import read
from ziplora.backbone import Sdxl, as_bytes
from ziplora.failure import Failure
from ziplora.merge import merge, merged_of
from ziplora.preview import preview_merge, preview_single, refuse_invalid, roughness
from ziplora.recipe import Drawing, PreviewRequest, PreviewResult, Recipe, Single
from ziplora.store import Store
from ziplora.tinyworld.dataset import render_all
from ziplora.tinyworld.world import STYLES, Scene

from .conftest import BASE_MODEL, BASE_REVISION, SIDE, Lora, recipe_of

DRAWING = Drawing(steps=2, guidance=5.0, side=SIDE)
REQUEST = PreviewRequest(("a sks robot in neon style", "a sks robot"), (1, 2), DRAWING)


@pytest.fixture
def recipe(subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> Recipe:
    recipe = recipe_of(subject, style, "direct")
    merge(recipe, subject.path, style.path, backbone, store)
    return recipe


def drawn(backbone: Sdxl, store: Store, lora: Lora | None, request: PreviewRequest) -> PreviewResult:
    single = Single(lora.sha256 if lora else None, BASE_MODEL, BASE_REVISION, request.drawing)
    return preview_single(single, request, lora.path if lora else None, backbone, store)


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_merge_is_drawn_as_asked(recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> None:
    result = preview_merge(recipe, REQUEST, subject.path, style.path, backbone, store)
    assert [(picture.prompt, picture.seed) for picture in result.pictures] == REQUEST.wanted
    with backbone.adapted(merged_of(recipe, subject.path, style.path, store)):
        wanted = as_bytes(backbone.draw(REQUEST.wanted, DRAWING))
    for path, picture in zip(result.paths, wanted, strict=True):
        assert np.array_equal(opened(path), picture)
    record = json.loads((store.previews(recipe.merge_id) / "previews.json").read_text())
    assert record["sheet"] == "sheet.png"
    assert [(entry["prompt"], entry["seed"]) for entry in record["pictures"]] == REQUEST.wanted
    assert opened(result.sheet).shape > (SIDE, 4 * SIDE)


def test_pictures_are_drawn_once(subject: Lora, backbone: Sdxl, store: Store) -> None:
    few = drawn(backbone, store, subject, replace(REQUEST, seeds=(1,)))
    times = {path: path.stat().st_mtime_ns for path in few.paths}
    more = drawn(backbone, store, subject, REQUEST)
    assert len(more.pictures) == 4
    assert {path: path.stat().st_mtime_ns for path in few.paths} == times
    assert set(few.paths) < set(more.paths)
    again = drawn(backbone, store, subject, replace(REQUEST, seeds=(1,)))
    assert again.pictures == few.pictures
    assert len(json.loads((more.folder / "previews.json").read_text())["pictures"]) == 4


def test_a_lost_picture_is_drawn_again(subject: Lora, backbone: Sdxl, store: Store) -> None:
    result = drawn(backbone, store, subject, REQUEST)
    before = opened(result.paths[1]).astype(int)
    result.paths[1].unlink()
    again = opened(drawn(backbone, store, subject, REQUEST).paths[1])
    assert np.abs(again - before).max() <= 1  # it was drawn among others before, which may round the other way


def test_another_way_of_drawing_is_another_picture(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    first = preview_merge(recipe, REQUEST, subject.path, style.path, backbone, store)
    longer = replace(REQUEST, drawing=replace(DRAWING, steps=3))
    second = preview_merge(recipe, longer, subject.path, style.path, backbone, store)
    assert not set(first.paths) & set(second.paths)


def test_the_base_alone_and_a_lora_alone_differ(style: Lora, backbone: Sdxl, store: Store) -> None:
    base, alone = drawn(backbone, store, None, REQUEST), drawn(backbone, store, style, REQUEST)
    assert base.folder != alone.folder
    assert base.paths[0].read_bytes() != alone.paths[0].read_bytes()
    with backbone.adapted(read(style.path).layers):  # its text layers included
        wanted = as_bytes(backbone.draw(REQUEST.wanted, DRAWING))
    assert np.array_equal(opened(alone.paths[0]), wanted[0])


def test_another_file_than_the_folders_is_a_failure(subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> None:
    single = Single(subject.sha256, BASE_MODEL, BASE_REVISION, DRAWING)
    with pytest.raises(Failure) as caught:
        preview_single(single, REQUEST, style.path, backbone, store)
    assert caught.value.code == "HASH_MISMATCH"


def test_a_broken_autoencoder_is_a_failure_and_leaves_nothing(backbone: Sdxl, store: Store) -> None:
    bias = backbone.pipeline.vae.get_parameter("decoder.conv_out.bias")
    kept = bias.detach().clone()
    try:
        bias.data.fill_(torch.nan)
        with pytest.raises(Failure, match="with seed 1 holds NaN") as caught:
            drawn(backbone, store, None, REQUEST)
    finally:
        bias.data.copy_(kept)
    assert caught.value.code == "PREVIEW_INVALID"
    assert not (store.root / "singles").exists()


def invalid(picture: np.ndarray) -> str:
    with pytest.raises(Failure) as caught:
        refuse_invalid(picture.astype(np.float32), "a robot", 7)
    assert caught.value.code == "PREVIEW_INVALID"
    return caught.value.fact


def test_black_grey_and_noise_are_no_pictures() -> None:
    generator = np.random.default_rng(1)
    assert "is all of one colour, 0.00 of full brightness" in invalid(np.zeros((64, 64, 3)))
    assert "is all of one colour, 0.50" in invalid(np.full((64, 64, 3), 0.5) + generator.normal(0, 0.004, (64, 64, 3)))
    assert "one colour" in invalid(np.broadcast_to(np.array([1.0, 0.2, 0.1]), (64, 64, 3)))
    assert "is noise: its neighbouring pixels differ by 1.0" in invalid(generator.random((64, 64, 3)))


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_style_of_the_tiny_world_is_a_picture(style: str) -> None:
    scenes = [Scene("ring", "red", background, style) for background in ("white", "black", "sand")]
    for picture in render_all(scenes):
        image_01 = (picture / 255).astype(np.float32)
        refuse_invalid(image_01, "a ring", 1)
        assert roughness(image_01) < 0.6

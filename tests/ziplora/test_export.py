"""A materialised merge is read by stock libraries without a word, and draws what the merge in memory draws."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ziplora.adapter import Layer, read
from ziplora.backbone import Sdxl
from ziplora.export import materialise, merge_files, provenance, write_adapter
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.merge import merge, merged_of
from ziplora.pair import Coefficients, Pair, merged_layers
from ziplora.recipe import Drawing, Export, Recipe, sha256_of
from ziplora.store import Store
from ziplora.truncation import truncated

from .conftest import SIDE, Lora, recipe_of

DRAWING = Drawing(steps=3, guidance=5.0, side=SIDE)
WANTED = [("a sks robot in neon style", 1), ("a sks robot", 2)]
CONVOLUTION = Module("unet", "down_blocks.0.downsamplers.0.conv")
POINT = Module("unet", "up_blocks.0.resnets.0.conv_shortcut")
MATRIX = Module("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2")
Picture = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def made(subject: Lora, style: Lora, backbone: Sdxl, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Store]:
    """A merge whose ranks differ from layer to layer."""
    store, recipe = Store(tmp_path_factory.mktemp("store")), recipe_of(subject, style, steps=5, learning_rate=0.1)
    merge(recipe, subject.path, style.path, backbone, store, subject.references, style.references)
    return recipe, store


def stock_pictures(base_folder: Path, weights: Path, caplog: pytest.LogCaptureFixture) -> Picture:
    """What somebody gets who loads the file with stock diffusers; no library may complain."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(base_folder, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
    # diffusers says this of every model that an adapter rightly leaves alone.
    assert [text for text in caplog.messages if not text.startswith("No LoRA keys associated to")] == []
    assert adapted_modules(pipeline.unet) == {module.path for module in read(weights).layers}
    drawn = pipeline(
        [prompt for prompt, _ in WANTED],
        num_inference_steps=DRAWING.steps,
        guidance_scale=DRAWING.guidance,
        generator=[torch.Generator().manual_seed(seed) for _, seed in WANTED],
        output_type="np",
        height=SIDE,
        width=SIDE,
    )
    images: Picture = drawn.images
    return images


def adapted_modules(model: nn.Module) -> set[str]:
    return {name.rpartition(".lora_A.")[0] for name, _ in model.named_modules() if name.endswith(".lora_A.default_0")}


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 1e-2)])
def test_stock_diffusers_draws_the_merge(
    dialect: Any,
    precision: Any,
    tolerance: float,
    strength: float,
    made: tuple[Recipe, Store],
    subject: Lora,
    style: Lora,
    backbone: Sdxl,
    base_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe, store = made
    with backbone.adapted(merged_of(recipe, subject.path, style.path, store, strength)):
        wanted = backbone.draw(WANTED, DRAWING)
    materialise(
        recipe, subject.path, style.path, store, tmp_path / "merged.safetensors", Export(dialect, precision, strength)
    )
    found = stock_pictures(base_folder, tmp_path / "merged.safetensors", caplog)
    difference = float(np.abs(found - wanted).max())
    seen = float(np.abs(wanted - backbone.draw(WANTED, DRAWING)).max())
    assert difference < tolerance < seen, f"max abs difference {difference:.2g}; the merge itself changes {seen:.2g}"


@pytest.mark.parametrize("export", [Export(), Export("kohya", "float32", 0.7), Export("kohya", "float32", 0.7, 3)])
def test_the_same_bytes_each_time(
    export: Export, made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    paths = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    exported = [materialise(recipe, subject.path, style.path, store, path, export) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [one.sha256 for one in exported] == [sha256_of(path) for path in paths]
    assert [one.size_bytes for one in exported] == [path.stat().st_size for path in paths]


def test_a_cut_file_is_the_same_however_many_threads(
    made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    threads, exported = torch.get_num_threads(), set()
    for count in (1, 2):
        torch.set_num_threads(count)
        path = tmp_path / "merged.safetensors"
        exported.add(materialise(recipe, subject.path, style.path, store, path, Export(rank=3)).sha256)
    torch.set_num_threads(threads)
    assert len(exported) == 1


def test_the_file_says_where_it_comes_from(
    made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    materialise(recipe, subject.path, style.path, store, path, Export(style_strength=0.5))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert Recipe.from_json(metadata["ziplora.recipe"]).merge_id == metadata["ziplora.merge_id"] == recipe.merge_id
    assert metadata["ziplora.style_strength"] == "0.5"


def test_the_rank_is_that_of_both_and_alpha_is_the_rank(
    made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    materialise(recipe, subject.path, style.path, store, path)
    found = read(path)
    assert found.facts.layers == {"unet": 56 + 14}
    assert found.facts.ranks == (2, 6, 8, 12)
    assert {layer.scale for layer in found.layers.values()} == {1.0}
    assert found.facts.dtypes == ("F16",)


def test_kohya_files_have_one_alpha(made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    materialise(recipe, subject.path, style.path, store, path, Export("kohya", "float32"))
    alphas = {float(tensor) for key, tensor in load_file(path).items() if key.endswith(".alpha")}
    assert len(alphas) == 1
    wanted = merged_of(recipe, subject.path, style.path, store)
    for module, layer in read(path).layers.items():
        torch.testing.assert_close(layer.delta(), wanted[module].delta())


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_a_file_of_a_smaller_rank_draws_too(
    dialect: Any,
    made: tuple[Recipe, Store],
    subject: Lora,
    style: Lora,
    backbone: Sdxl,
    base_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    exported = materialise(recipe, subject.path, style.path, store, path, Export(dialect, "float32", 0.5, rank=3))
    layers, error = truncated(merged_of(recipe, subject.path, style.path, store, 0.5), 3)
    assert (exported.rank, exported.rank_error) == (3, error)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["ziplora.rank"], metadata["ziplora.rank_error"]) == ("3", f"{error:.6f}")
    assert "fixed" in metadata["ziplora.style_knob"]
    assert read(path).facts.ranks == (2, 3)
    with backbone.adapted(layers):
        wanted = backbone.draw(WANTED, DRAWING)
    difference = float(np.abs(stock_pictures(base_folder, path, caplog) - wanted).max())
    assert difference < 1e-4, f"max abs difference {difference:.2g}"


def test_a_rank_that_every_layer_has_changes_no_byte(
    made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    exported = {
        materialise(recipe, subject.path, style.path, store, path, Export(rank=rank)) for rank in (None, 12, 400)
    }
    assert len(exported) == 1
    assert exported.pop().rank_error is None


@pytest.mark.parametrize(
    ("export", "sha256"),
    [
        (Export(), "5bc3273d866abfa373e94cbda140e5c46ee94b04987b74431ba5a4f4cb1ca077"),
        (Export("kohya", "float32", 0.5), "576f6e5de73377d8dfd112261862c1d51b5410017ecf7e03d075ca308762d38c"),
    ],
)
def test_files_of_the_first_release_come_out_as_they_did(export: Export, sha256: str, tmp_path: Path) -> None:
    def counted(rank: int, start: int, *kernel: int) -> Layer:
        size = rank * 6 * math.prod(kernel)
        down = torch.arange(start, start + size, dtype=torch.float32).view(rank, 6, *kernel) / 64
        return Layer(down, torch.arange(5 * rank, dtype=torch.float32).view(5, rank) / 32, 0.5)

    to_q, conv = Module("unet", f"{MATRIX.path[:-8]}attn1.to_q"), Module("unet", "mid_block.resnets.0.conv1")
    pair = Pair({to_q: counted(4, 1), MATRIX: counted(2, 2)}, {to_q: counted(2, 3), conv: counted(1, 4, 3, 3)})
    coefficients = Coefficients({to_q: torch.arange(6) / 4}, {to_q: torch.arange(6) / 8})
    weights = {"subject_weight": 1.0, "style_weight": 1.0}
    recipe = Recipe("a" * 64, "b" * 64, "org/base", "1", "direct", weights, None, None)
    layers = merged_layers(pair, coefficients, export.style_strength)
    write_adapter(tmp_path / "out.safetensors", layers, export, provenance(recipe, export, None))
    assert sha256_of(tmp_path / "out.safetensors") == sha256


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("shape", [(), (1, 1)], ids=["matrices", "kernels"])
def test_convolutions_go_out_too(
    dialect: Any,
    shape: Sequence[int],
    backbone: Sdxl,
    base_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Convolutions of one pixel and linear layers, either of them written as a matrix or as a kernel."""
    sizes, layers = backbone.sizes(), {}
    for number, module in enumerate((CONVOLUTION, POINT, MATRIX)):
        generator, kernel = torch.Generator().manual_seed(number), (3, 3) if module == CONVOLUTION else shape
        down = torch.randn((2, sizes[module].inputs, *kernel), generator=generator) / 10
        layers[module] = Layer(down, torch.randn((sizes[module].outputs, 2), generator=generator), 1.0)
    write_adapter(tmp_path / "out.safetensors", layers, Export(dialect, "float32"), {})
    with backbone.adapted(layers):
        wanted = backbone.draw(WANTED, DRAWING)
    difference = float(np.abs(stock_pictures(base_folder, tmp_path / "out.safetensors", caplog) - wanted).max())
    assert difference < 1e-4, f"max abs difference {difference:.2g}"


def test_numbers_beyond_half_precision_are_a_failure(tmp_path: Path) -> None:
    layers = {MATRIX: Layer(torch.full((2, 4), 1e5), torch.ones(4, 2), 1.0)}
    with pytest.raises(Failure, match="1 tensors hold numbers beyond float16") as caught:
        write_adapter(tmp_path / "out.safetensors", layers, Export(), {})
    assert caught.value.code == "EXPORT_OVERFLOW"
    assert list(tmp_path.iterdir()) == []
    write_adapter(tmp_path / "out.safetensors", layers, Export(precision="float32"), {})


def test_two_files_in_one_file_out(subject: Lora, style: Lora, backbone: Sdxl, store: Store, tmp_path: Path) -> None:
    recipe, result, exported = merge_files(
        subject.path,
        style.path,
        tmp_path / "out.safetensors",
        backbone,
        "test/base",
        "1",
        store,
        subject_prompt=subject.prompt,
        style_prompt=style.prompt,
        style_references=style.references,
        joint_prompts=("a sks robot in neon style",),
        method="ziplora",
        parameters={"steps": 3, "samples_per_step": 1},
        samples=3,
        side=SIDE,
    )
    assert result.merge_id == recipe.merge_id
    assert (exported.rank, exported.rank_error) == (12, None)
    assert recipe.subject_calibration is not None
    assert recipe.subject_calibration.references_sha256 is None
    assert json.loads(recipe.to_json())["parameters"]["steps"] == 3
    assert read(tmp_path / "out.safetensors").facts.layers == {"unet": 70}

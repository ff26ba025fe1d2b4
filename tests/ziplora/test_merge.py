"""A merge leaves coefficients and a record behind, is done once, and knows its own parents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ziplora.adapter import Adapter, read
from ziplora.backbone import Sdxl
from ziplora.failure import Failure
from ziplora.header import Refusal
from ziplora.merge import finished, merge, merged_of, read_coefficients
from ziplora.recipe import MergeResult, Recipe
from ziplora.store import Store

from .conftest import Lora, MakeLora, recipe_of


def merged(recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> MergeResult:
    return merge(recipe, subject.path, style.path, backbone, store, subject.references, style.references)


@pytest.fixture
def recipe(subject: Lora, style: Lora) -> Recipe:
    return recipe_of(subject, style, steps=3, samples_per_step=1)


def test_the_record_says_what_happened(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    result = merged(recipe, subject, style, backbone, store)
    assert (result.merged, result.passed_through, result.rank) == (56, 14, 12)
    assert result.left_out == tuple(
        f"style text_encoder.text_model.encoder.layers.{n}.self_attn.q_proj" for n in (0, 1)
    )
    assert 0.02 < result.movement < 0.04
    assert result.losses is not None
    assert (result.device, result.dtype) == ("cpu", "float32")
    assert result.peak_memory_bytes > 1_000_000
    assert result.versions["torch"] == torch.__version__
    folder = store.merge(recipe.merge_id)
    assert {path.name for path in folder.iterdir()} == {"coefficients.safetensors", "result.json"}
    assert MergeResult.from_json((folder / "result.json").read_text()) == result


def test_what_is_finished_is_not_done_again(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store, tmp_path: Path
) -> None:
    result = merged(recipe, subject, style, backbone, store)
    assert finished(store, recipe.merge_id) == result
    nowhere = tmp_path / "nowhere"
    assert merge(recipe, nowhere, nowhere, backbone, store) == result


@pytest.mark.parametrize("name", ["coefficients.safetensors", "result.json"])
def test_a_damaged_merge_is_done_again(
    name: str, recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    result = merged(recipe, subject, style, backbone, store)
    path = store.merge(recipe.merge_id) / name
    path.write_bytes(path.read_bytes()[:-5])
    assert finished(store, recipe.merge_id) is None
    with pytest.raises(Failure) as caught:
        read_coefficients(store, recipe.merge_id)
    assert caught.value.code == "MERGE_DAMAGED"
    again = merged(recipe, subject, style, backbone, store)
    assert again.coefficients_sha256 == result.coefficients_sha256


def test_a_failed_merge_leaves_nothing(subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> None:
    recipe = recipe_of(subject, style, steps=1, samples_per_step=1, learning_rate=5e-5)
    with pytest.raises(Failure, match="MERGE_UNMOVED"):
        merged(recipe, subject, style, backbone, store)
    assert not store.merge(recipe.merge_id).exists()


def test_coefficients_are_kept_in_single_precision(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    merged(recipe, subject, style, backbone, store)
    tensors = load_file(store.merge(recipe.merge_id) / "coefficients.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * 56
    coefficients = read_coefficients(store, recipe.merge_id)
    assert len(coefficients.subject) == len(coefficients.style) == 56


def test_another_file_than_the_recipes_is_a_failure(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    with pytest.raises(Failure, match=r"The subject file .* has the sha256") as caught:
        merged(recipe, replace(subject, path=style.path), style, backbone, store)
    assert caught.value.code == "HASH_MISMATCH"


def test_an_adapter_is_read_once_for_all_that_is_made_of_it_while_its_file_stays(
    make_lora: MakeLora, backbone: Sdxl, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []

    def counted(path: Path) -> Adapter:
        files.append(path)
        return read(path)

    monkeypatch.setattr("ziplora.merge.read", counted)
    subject, *styles = (make_lora(name, seed=seed) for seed, name in enumerate(("cat", "ink", "oil"), start=11))
    for style in styles:
        recipe = recipe_of(subject, style, "direct")
        merged(recipe, subject, style, backbone, store)
        merged_of(recipe, subject.path, style.path, store)
    assert files == [subject.path, *(style.path for style in styles)]
    subject.path.write_bytes(styles[0].path.read_bytes())
    with pytest.raises(Failure, match="has the sha256"):
        merged_of(recipe, subject.path, style.path, store)


def test_a_recipe_without_the_calibrations_its_method_needs_is_a_failure(
    recipe: Recipe, subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    with pytest.raises(Failure, match="no calibration of the style") as caught:
        merged(replace(recipe, style_calibration=None), subject, style, backbone, store)
    assert caught.value.code == "CALIBRATION_MISMATCH"


def test_a_lora_of_another_base_is_refused(subject: Lora, make_lora: MakeLora, backbone: Sdxl, store: Store) -> None:
    wrong = make_lora("wrong", "kohya", seed=31, text_width=128)
    with pytest.raises(Refusal) as caught:
        merged(recipe_of(subject, wrong, "direct"), subject, wrong, backbone, store)
    assert caught.value.code == "BASE_MISMATCH"


def test_absurd_weights_are_merged_only_when_told_to(
    subject: Lora, make_lora: MakeLora, backbone: Sdxl, store: Store
) -> None:
    wild = make_lora("wild", "kohya", alphas=(400.0,), seed=41)
    recipe = recipe_of(subject, wild, "direct")
    with pytest.raises(Refusal, match=r"56 layers of the style change their weights absurdly much") as caught:
        merge(recipe, subject.path, wild.path, backbone, store)
    assert caught.value.code == "WEIGHT_OUTLIER"
    merge(recipe, subject.path, wild.path, backbone, store, allow_outliers=True)
    assert len(merged_of(recipe, subject.path, wild.path, store)) == 56


def test_direct_needs_no_calibration(subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> None:
    recipe = recipe_of(subject, style, "direct")
    result = merge(recipe, subject.path, style.path, backbone, store)
    assert result.losses is None
    assert (result.movement, result.subject_mean, result.style_mean) == (0, 1, 1)
    assert len(merged_of(recipe, subject.path, style.path, store)) == 56 + 14
    assert not (store.root / "calibrations").exists()


def test_least_squares_leave_what_gradients_leave(subject: Lora, style: Lora, backbone: Sdxl, store: Store) -> None:
    recipe = recipe_of(subject, style, "ziplora-lsq", passes=1)
    result = merged(recipe, subject, style, backbone, store)
    coefficients = read_coefficients(store, recipe.merge_id)
    assert len(coefficients.subject) == len(coefficients.style) == 56
    assert coefficients.movement() == result.movement
    assert len(merged_of(recipe, subject.path, style.path, store)) == 56 + 14

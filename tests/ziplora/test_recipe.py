"""What changes a result is in its id, what does not is not; records read back as they were."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ziplora.recipe import (
    Calibration,
    Drawing,
    JointCalibration,
    Losses,
    MergeIds,
    MergeResult,
    PreviewRequest,
    Recipe,
    References,
    Single,
    folder_revision,
)

CALIBRATION = Calibration("a" * 64, "org/base", "1", "a sks robot", None)
RECIPE = Recipe(
    "a" * 64, "b" * 64, "org/base", "1", "ziplora", {"steps": 100, "balanced": True}, CALIBRATION, CALIBRATION
)
JOINT = JointCalibration(("a sks robot in szn style", "a sks robot on a street in szn style"))
OTHER: dict[str, Any] = {
    "subject_sha256": "c" * 64,
    "style_sha256": "c" * 64,
    "base_model": "org/other",
    "base_revision": "2",
    "method": "direct",
    "parameters": {"steps": 99, "balanced": True},
    "subject_calibration": replace(CALIBRATION, seed=1),
    "style_calibration": None,
    "joint": JOINT,
    "prompts": JOINT.prompts[:1],
    "subject_weight": 1.0,
    "seed": 1,
    "version": 0,
    "adapter_sha256": "c" * 64,
    "prompt": "a sks fish",
    "references_sha256": "d" * 64,
    "samples": 17,
    "side": 512,
    "pictures": 9,
    "steps": 21,
    "guidance": 6.0,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_fact_of_a_recipe_is_in_its_id(field: str) -> None:
    assert replace(RECIPE, **{field: OTHER[field]}).merge_id != RECIPE.merge_id


@pytest.mark.parametrize("field", [field.name for field in fields(Calibration)])
def test_every_fact_of_a_calibration_is_in_its_id(field: str) -> None:
    assert replace(CALIBRATION, **{field: OTHER[field]}).calibration_id != CALIBRATION.calibration_id


@pytest.mark.parametrize("field", [field.name for field in fields(JointCalibration)])
def test_every_fact_of_a_joint_calibration_is_in_the_id_of_its_recipe(field: str) -> None:
    other = replace(JOINT, **{field: OTHER[field]})
    assert replace(RECIPE, joint=other).merge_id != replace(RECIPE, joint=JOINT).merge_id


def test_a_recipe_without_joint_prompts_keeps_the_id_of_catalogues_that_know_none() -> None:
    assert RECIPE.merge_id == "666f974bc29a817f86ea8698cf125bcf5ffee10787a1bf54325b8e17cce707d1"


@pytest.mark.parametrize("field", ["pictures", "steps", "guidance"])
def test_how_pictures_are_drawn_means_nothing_when_there_are_references(field: str) -> None:
    given = replace(CALIBRATION, references_sha256="d" * 64)
    assert replace(given, **{field: OTHER[field]}).calibration_id == given.calibration_id


def test_the_order_of_parameters_is_not_in_the_id() -> None:
    turned = replace(RECIPE, parameters=dict(reversed(list(RECIPE.parameters.items()))))
    assert turned.merge_id == RECIPE.merge_id


_SHARED = replace(RECIPE, base_model='a "base" of 100 % {x} %(subject)s', parameters={"ratio": 1e-05, "on": True})


@given(
    names=st.lists(st.text(), min_size=3, max_size=3),
    around=st.text(),
    said=st.text(),
    calibrated=st.booleans(),
    joint=st.booleans(),
)
def test_ids_of_many_recipes_are_those_of_each(
    names: list[str], around: str, said: str, calibrated: bool, joint: bool
) -> None:
    """Where nothing but the style differs."""
    assume(MergeIds.MARK not in around)
    subject, one, other = (
        replace(CALIBRATION, adapter_sha256=digest * 64, prompt=name) for digest, name in zip("abc", names, strict=True)
    )

    def recipe(style: Calibration, said: str) -> Recipe:
        return replace(
            _SHARED,
            subject_sha256=subject.adapter_sha256,
            style_sha256=style.adapter_sha256,
            subject_calibration=subject if calibrated else None,
            style_calibration=style if calibrated else None,
            joint=replace(JOINT, prompts=(around + said, said + said + around, around)) if joint else None,
        )

    ids = MergeIds(recipe(one, MergeIds.PLACE))
    assert ids.of(MergeIds.of_style(other, said)) == recipe(other, said).merge_id


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, subject_calibration=None, style_calibration=None), replace(RECIPE, joint=JOINT)],
)
def test_a_recipe_reads_back(recipe: Recipe) -> None:
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.merge_id == recipe.merge_id


@pytest.mark.parametrize("losses", [None, Losses(2.5, 1.0, 0.5, 0.25, ((0, 2.5, 1.0, 56.0), (99, 0.5, 0.25, 50.0)))])
def test_a_result_reads_back(losses: Losses | None) -> None:
    result = MergeResult(
        "f" * 64, losses, 0.5, 0.9, 1.1, 56, 14, ("style text_encoder.text_model.x",), 12, 1.5, 10, "cpu", "float32",
        {"torch": "2.13.0"}, "e" * 64, movement_by_block={"mid_block": (0.5, 0.25)},
    )  # fmt: skip
    assert MergeResult.from_json(result.to_json()) == result
    newer = ("rank_error", "movement_by_block")
    older = {name: value for name, value in json.loads(result.to_json()).items() if name not in newer}
    assert MergeResult.from_json(json.dumps(older)) == replace(result, movement_by_block={})


def test_references_are_known_by_their_bytes_in_order(tmp_path: Path) -> None:
    paths = tuple(tmp_path / name for name in "ab")
    for path in paths:
        path.write_text(path.name)
    moved = tmp_path / "c"
    moved.write_text("a")
    assert References(paths, "samples").sha256 == References((moved, paths[1]), "samples").sha256
    assert References(paths, "samples").sha256 != References(paths[::-1], "samples").sha256


def test_a_folder_is_known_by_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    first = folder_revision(tmp_path)
    assert folder_revision(tmp_path) == first
    (tmp_path / "unet" / "config.json").write_text("{ }")
    assert folder_revision(tmp_path) != first


def test_every_prompt_is_drawn_with_every_seed_once() -> None:
    request = PreviewRequest(("a", "b", "a"), (1, 2), Drawing())
    assert request.wanted == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_the_base_alone_and_each_lora_have_their_own_folder() -> None:
    base = Single(None, "org/base", "1", Drawing())
    ids = {
        base.single_id,
        replace(base, adapter_sha256="a" * 64).single_id,
        replace(base, drawing=Drawing(steps=31)).single_id,
    }
    assert len(ids) == 3

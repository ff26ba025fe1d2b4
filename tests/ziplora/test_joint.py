"""On joint prompts a merge is fitted to the sum of what both adapters do alone, and comes nearer to it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ziplora.adapter import read
from ziplora.backbone import Sdxl
from ziplora.calibration import predict_all
from ziplora.failure import Failure
from ziplora.joint import calibrate_jointly
from ziplora.merge import merge
from ziplora.methods import ziplora_joint
from ziplora.methods.solution import Problem, joint_error
from ziplora.methods.ziplora_joint import Parameters, solve
from ziplora.pair import DIRECT, Pair
from ziplora.recipe import JointCalibration
from ziplora.store import Store

from .conftest import JOINT, SIDE, Lora, recipe_of
from .test_methods import assert_same, problem_of


def pair_of(subject: Lora, style: Lora) -> Pair:
    return Pair(read(subject.path).layers, read(style.path).layers)


def silent(pair: Pair) -> Pair:
    """Both adapters without any effect."""
    sides = [
        {module: replace(layer, up=torch.zeros_like(layer.up)) for module, layer in layers.items()}
        for layers in (pair.subject, pair.style)
    ]
    return Pair(*sides)


def joint_problem(
    backbone: Sdxl, store: Store, subject: Lora, style: Lora, seed: int = 0, request: JointCalibration = JOINT
) -> Problem:
    problem = problem_of(backbone, store, subject, style, seed)
    return replace(problem, joint=calibrate_jointly(request, problem.pair, backbone))


@pytest.fixture(scope="module")
def problem(backbone: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return joint_problem(backbone, Store(tmp_path_factory.mktemp("store")), subject, style)


def test_the_targets_are_the_base_and_either_effect(backbone64: Sdxl, subject: Lora, style: Lora) -> None:
    pair = pair_of(subject, style)
    calibrated = calibrate_jointly(JOINT, pair, backbone64)
    assert len(calibrated) == len(JOINT.prompts)
    for prompt, one in zip(JOINT.prompts, calibrated, strict=True):
        condition = backbone64.condition(prompt, SIDE)
        base = predict_all(backbone64, one.noisy, one.timesteps, condition)
        effects = []
        for layers in (pair.subject, pair.style):
            unet = {module: layer for module, layer in layers.items() if module.part == "unet"}
            with backbone64.adapted(unet):
                effects.append(predict_all(backbone64, one.noisy, one.timesteps, condition) - base)
        wanted = base + JOINT.subject_weight * effects[0] + effects[1]
        torch.testing.assert_close(one.teacher, wanted, rtol=0, atol=1e-12)
        assert len(one.noisy) == JOINT.samples


def test_the_base_is_left_as_it_was(backbone: Sdxl, subject: Lora, style: Lora, problem: Problem) -> None:
    one = problem.joint[0]
    before = predict_all(backbone, one.noisy, one.timesteps, one.condition)
    calibrate_jointly(JOINT, pair_of(subject, style), backbone)
    assert torch.equal(predict_all(backbone, one.noisy, one.timesteps, one.condition), before)


def test_the_merge_comes_nearer_to_the_sum_of_effects(problem: Problem) -> None:
    found = solve(problem, Parameters(steps=30, learning_rate=0.03)).losses
    assert found is not None
    assert found.first_joint is not None
    assert found.last_joint is not None
    assert found.first_joint == pytest.approx(joint_error(problem, DIRECT))
    assert found.last_joint < 0.7 * found.first_joint
    assert [len(point) for point in found.curve] == [2] * len(found.curve)


def test_the_same_seed_gives_the_same_coefficients(
    problem: Problem, backbone: Sdxl, subject: Lora, style: Lora, store: Store
) -> None:
    parameters = Parameters(steps=3)
    assert_same(solve(joint_problem(backbone, store, subject, style), parameters), solve(problem, parameters))


def test_swapping_the_roles_swaps_the_result(backbone64: Sdxl, subject: Lora, style: Lora, store: Store) -> None:
    parameters, even = Parameters(steps=3), replace(JOINT, subject_weight=1.0)
    found = solve(joint_problem(backbone64, store, subject, style, request=even), parameters)
    swapped = solve(joint_problem(backbone64, store, style, subject, request=even), parameters)
    turned = replace(swapped.coefficients, subject=swapped.coefficients.style, style=swapped.coefficients.subject)
    assert_same(found, replace(swapped, coefficients=turned), tolerance=1e-7)


def test_the_learning_rate_falls_along_a_straight_line(problem: Problem) -> None:
    """Adam's first two steps are hardly longer than its learning rate."""
    one, two = (
        torch.cat([*found.subject.values(), *found.style.values()])
        for found in (solve(problem, Parameters(steps=steps)).coefficients for steps in (1, 2))
    )
    rate = Parameters.learning_rate
    assert float((one - 1).abs().max()) == pytest.approx(rate, rel=1e-3)
    assert float((two - one).abs().max()) == pytest.approx(rate / 2, rel=5e-3)


def test_two_adapters_without_effect_are_a_failure(backbone: Sdxl, subject: Lora, style: Lora) -> None:
    with pytest.raises(Failure, match="The sum of both LoRAs' effects changes nothing") as caught:
        calibrate_jointly(JOINT, silent(pair_of(subject, style)), backbone)
    assert caught.value.code == "TEACHER_WITHOUT_EFFECT"


def test_a_merge_that_went_nowhere_is_a_failure(problem: Problem) -> None:
    with pytest.raises(Failure, match=r"no coefficient moved by more than 7\.5e-05") as caught:
        solve(problem, Parameters(steps=2, learning_rate=5e-5))
    assert caught.value.code == "MERGE_UNMOVED"
    assert "use 0.06" in caught.value.next_step


@pytest.mark.parametrize("given", [{"steps": 0}, {"samples_per_step": 0}, {"learning_rate": 0.0}])
def test_a_parameter_out_of_bounds_is_named(given: dict[str, int]) -> None:
    with pytest.raises(Failure, match=f"Parameter {next(iter(given))} ") as caught:
        ziplora_joint.Parameters(**given)
    assert caught.value.code == "PARAMETER_INVALID"


def test_a_whole_merge_needs_joint_prompts_in_its_recipe(
    subject: Lora, style: Lora, backbone: Sdxl, store: Store
) -> None:
    recipe = recipe_of(subject, style, "ziplora-joint", steps=3)
    files: tuple[Path, Path] = (subject.path, style.path)
    with pytest.raises(Failure, match="no calibration of joint prompts") as caught:
        merge(replace(recipe, joint=None), *files, backbone, store, subject.references, style.references)
    assert caught.value.code == "CALIBRATION_MISMATCH"
    result = merge(recipe, *files, backbone, store, subject.references, style.references)
    assert result.losses is not None
    assert result.losses.last_joint is not None

"""What a recipe tells a method is checked before it runs, and a merge that went nowhere says so."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ziplora.adapter import read
from ziplora.backbone import Sdxl, load_backbone
from ziplora.calibration import calibrate
from ziplora.failure import Failure
from ziplora.methods import METHODS, complete_parameters, method_named, ziplora_lsq
from ziplora.methods import direct as direct_method
from ziplora.methods.descent import row_schedule
from ziplora.methods.solution import Problem, Solution, unheard
from ziplora.methods.student import Student
from ziplora.methods.ziplora import Parameters, objective, solve
from ziplora.pair import DIRECT, Coefficients, Pair, merged_layers
from ziplora.store import Store

from .conftest import FEED_FORWARD, Lora, MakeLora


def problem_of(backbone: Sdxl, store: Store, subject: Lora, style: Lora, seed: int = 0) -> Problem:
    sides = [calibrate(lora.calibration(), lora.path, backbone, store, lora.references) for lora in (subject, style)]
    pair = Pair(read(subject.path).layers, read(style.path).layers)
    return Problem(pair, backbone, sides[0], sides[1], seed, unheard)


@pytest.fixture(scope="module")
def problem(backbone: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(backbone, Store(tmp_path_factory.mktemp("store")), subject, style)


def assert_same(one: Solution, other: Solution, tolerance: float = 0.0) -> None:
    assert_same_columns(one.coefficients, other.coefficients, tolerance)


def assert_same_columns(one: Coefficients, other: Coefficients, tolerance: float = 0.0) -> None:
    for role in ("subject", "style"):
        found, wanted = getattr(one, role), getattr(other, role)
        assert found.keys() == wanted.keys()
        for module in wanted:
            torch.testing.assert_close(found[module], wanted[module], rtol=0, atol=tolerance)


def test_both_sides_come_nearer_to_their_loras(problem: Problem) -> None:
    heard = []
    watched = replace(problem, progress=lambda done, total: heard.append((done, total)))
    solution = solve(watched, Parameters(steps=20))
    assert solution.losses is not None
    assert solution.losses.last_subject < 0.7 * solution.losses.first_subject
    assert solution.losses.last_style < 0.7 * solution.losses.first_style
    assert heard == [(step, 20) for step in range(1, 21)]
    assert [point[0] for point in solution.losses.curve][-1] == 19


def test_the_same_seed_is_the_same_merge_and_another_is_not(problem: Problem) -> None:
    parameters = Parameters(steps=3, samples_per_step=2)
    first = solve(problem, parameters)
    assert_same(solve(problem, parameters), first)
    other = solve(replace(problem, seed=1), parameters).coefficients.subject
    assert any(not torch.equal(vector, first.coefficients.subject[module]) for module, vector in other.items())


def test_swapping_the_roles_swaps_the_result(backbone64: Sdxl, subject: Lora, style: Lora, store: Store) -> None:
    parameters = Parameters(steps=3, samples_per_step=2)
    found = solve(problem_of(backbone64, store, subject, style), parameters)
    swapped = solve(problem_of(backbone64, store, style, subject), parameters)
    turned = replace(swapped.coefficients, subject=swapped.coefficients.style, style=swapped.coefficients.subject)
    assert_same(found, replace(swapped, coefficients=turned), tolerance=1e-7)


def test_the_form_of_a_parent_does_not_matter(backbone64: Sdxl, subject: Lora, style: Lora, store: Store) -> None:
    """The subject's matrices in another basis, a power of two moved from its scale into them."""
    found = problem_of(backbone64, store, subject, style)
    rewritten = {
        module: replace(layer, down=layer.down.flip(0) / 4, up=layer.up.flip(1), scale=layer.scale * 4)
        for module, layer in found.pair.subject.items()
    }
    other = replace(found, pair=Pair(rewritten, found.pair.style))
    parameters = Parameters(steps=3, samples_per_step=2)
    assert_same(solve(other, parameters), solve(found, parameters), tolerance=1e-7)


def test_the_start_is_the_direct_merge(problem: Problem, backbone: Sdxl) -> None:
    student, calibrated = Student(problem, DIRECT), problem.calibrations[0]
    rows = torch.tensor([0, 1])
    with torch.no_grad(), student.installed():
        found, _ = student.predict(problem.calibrations, (rows, rows))
    direct = direct_method.solve(problem, direct_method.Parameters())
    with torch.no_grad(), backbone.adapted(merged_layers(problem.pair, direct.coefficients)):
        one = calibrated.condition
        told = replace(one, **{name: torch.cat([getattr(one, name)] * 2) for name in ("hidden", "pooled", "time_ids")})
        wanted = backbone.predict(calibrated.noisy[rows], calibrated.timesteps[rows], told)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_finds_its_way_too(
    problem: Problem, base_folder: Path, subject: Lora, style: Lora, store: Store
) -> None:
    half = problem_of(load_backbone(base_folder, "cpu", "bfloat16"), store, subject, style)
    parameters = Parameters(steps=4, samples_per_step=1)
    found, wanted = solve(half, parameters), solve(problem, parameters)
    assert {vector.dtype for vector in found.coefficients.subject.values()} == {torch.float32}
    assert found.losses is not None
    assert wanted.losses is not None
    for side in ("first_subject", "first_style", "last_subject", "last_style"):
        assert getattr(found.losses, side) == pytest.approx(getattr(wanted.losses, side), rel=0.1)


def test_in_bfloat16_all_but_the_unet_is_single(base_folder: Path, subject: Lora, style: Lora, store: Store) -> None:
    half = problem_of(load_backbone(base_folder, "cpu", "bfloat16"), store, subject, style)
    student, parameters = Student(half, DIRECT), Parameters()
    optimiser = torch.optim.Adam([student.flat], lr=parameters.learning_rate)
    with student.installed():
        terms = objective(student, half.calibrations, [torch.tensor([0, 1])] * 2, parameters)
        sum(terms[1:], terms[0]).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    assert student.flat.grad is not None
    moments = [state for state in optimiser.state[student.flat].values() if state.dim() > 0]
    for tensor in (student.flat, student.flat.grad, *terms, *moments):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    assert float(student.movement()) == pytest.approx(parameters.learning_rate, rel=1e-3)


def test_the_learning_rate_trap_is_a_failed_merge(problem: Problem) -> None:
    with pytest.raises(Failure, match=r"no coefficient moved by more than 0\.0002") as caught:
        solve(problem, Parameters(learning_rate=5e-5, steps=4, samples_per_step=1))
    assert caught.value.code == "MERGE_UNMOVED"
    assert "use 0.01" in caught.value.next_step


def test_a_warm_start_goes_on_from_the_least_squares(problem: Problem) -> None:
    start = ziplora_lsq.solve(problem, ziplora_lsq.Parameters(passes=2))
    found = solve(problem, Parameters(steps=20, start="lsq"))
    assert start.losses is not None
    assert found.losses is not None
    assert found.losses.first_subject == start.losses.first_subject
    begun = start.losses.last_subject + start.losses.last_style
    assert found.losses.last_subject + found.losses.last_style < 0.9 * begun
    moved = [
        float((vector - start.coefficients.style[module]).abs().max())
        for module, vector in found.coefficients.style.items()
    ]
    assert 0.1 < max(moved) < 0.5


def test_a_warm_start_that_goes_nowhere_is_a_failed_merge(problem: Problem) -> None:
    with pytest.raises(Failure, match=r"no coefficient moved by more than 0\.0001.* be that of ziplora-lsq") as caught:
        solve(problem, Parameters(start="lsq", learning_rate=5e-5, steps=2, samples_per_step=1))
    assert caught.value.code == "MERGE_UNMOVED"


def test_exploding_coefficients_are_a_failed_merge(problem: Problem) -> None:
    with pytest.raises(Failure, match=r"At step 2 of 9, at learning rate 10, a coefficient had moved by") as caught:
        solve(problem, Parameters(learning_rate=10.0, steps=9, samples_per_step=1))
    assert caught.value.code == "MERGE_DIVERGED"


def test_a_loss_that_is_no_number_is_a_failed_merge(problem: Problem) -> None:
    broken = replace(problem.calibrations[0], teacher=problem.calibrations[0].teacher * torch.nan)
    with pytest.raises(Failure, match=r"At step 1 of 5, at learning rate 0\.01, the loss was nan") as caught:
        solve(replace(problem, subject=broken), Parameters(steps=5, samples_per_step=1))
    assert caught.value.code == "MERGE_DIVERGED"


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"direct"}))
def test_adapters_without_a_common_layer_are_a_failed_merge(
    name: str, backbone: Sdxl, subject: Lora, make_lora: MakeLora, store: Store
) -> None:
    apart = make_lora("apart", ends=FEED_FORWARD, seed=21)
    method = METHODS[name]
    with pytest.raises(Failure, match="no attention layer in common") as caught:
        method.solve(problem_of(backbone, store, subject, apart), method.parameters())
    assert caught.value.code == "NO_SHARED_LAYERS"


def test_calibrations_of_two_sizes_do_not_meet(problem: Problem) -> None:
    small = replace(problem.calibrations[1], noisy=problem.calibrations[1].noisy[..., :4])
    with pytest.raises(Failure, match=r"shape \(32, 8, 8\), the style's \(32, 8, 4\)") as caught:
        solve(replace(problem, style=small), Parameters())
    assert caught.value.code == "CALIBRATION_MISMATCH"


def test_direct_weighs_every_layer_of_a_side(problem: Problem) -> None:
    solution = direct_method.solve(problem, direct_method.Parameters(subject_weight=0.5, style_weight=0.0))
    found = merged_layers(problem.pair, solution.coefficients)
    for module, layer in found.items():
        wanted = 0.5 * problem.pair.subject[module].delta() if module in problem.pair.subject else 0 * layer.delta()
        torch.testing.assert_close(layer.delta(), wanted)
    assert solution.coefficients.movement() == 1.0


def test_every_sample_is_seen_before_any_is_seen_again(problem: Problem) -> None:
    rows = row_schedule(problem.calibrations[0], steps=4, per_step=2, seed=0)
    assert sorted(rows[:2].flatten().tolist()) == sorted(rows[2:].flatten().tolist()) == [0, 1, 2, 3]


def test_a_recipe_holds_all_parameters() -> None:
    assert complete_parameters("direct", {"style_weight": 1}) == {"subject_weight": 1.0, "style_weight": 1.0}
    assert complete_parameters("ziplora", {})["learning_rate"] == 0.01
    uncalibrated = {name for name, method in METHODS.items() if not method.calibrated}
    assert uncalibrated == {"direct", "np-lora", "ties", "dare"}
    assert {name for name, method in METHODS.items() if method.joint} == {"ziplora-joint"}


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"learning_rte": 0.1}, "no parameter 'learning_rte'; the nearest is 'learning_rate'"),
        ({"steps": 1.5}, "steps of method ziplora is 1.5, not of type int"),
        ({"steps": True}, "not of type int"),
        ({"balanced": 1}, "not of type bool"),
        ({"steps": 0}, "Parameter steps is 0, less than 1"),
        ({"learning_rate": float("nan")}, "learning_rate is not above 0"),
        ({"third_term": "sum"}, "'sum', not one of cosine, mean, literal"),
        ({"third_term_weight": -1}, "third_term_weight is below 0"),
        ({"samples_per_step": 0}, "samples_per_step is 0, less than 1"),
        ({"start": "zeros"}, "'zeros', not one of ones, lsq"),
    ],
)
def test_a_wrong_parameter_is_named(given: Mapping[str, Any], fact: str) -> None:
    with pytest.raises(Failure) as caught:
        complete_parameters("ziplora", given)
    assert caught.value.code == "PARAMETER_INVALID"
    assert fact in caught.value.fact


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(Failure, match="There is no method 'zipora'; the nearest is 'ziplora'") as caught:
        method_named("zipora")
    assert caught.value.code == "METHOD_UNKNOWN"

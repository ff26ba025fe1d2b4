"""Least squares gives what closed forms say of one layer, and on a whole model comes nearer to both adapters."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ziplora.adapter import Layer
from ziplora.backbone import Sdxl, load_backbone
from ziplora.calibration import calibrate
from ziplora.failure import Failure
from ziplora.methods import complete_parameters
from ziplora.methods.solution import Problem, relative_errors
from ziplora.methods.ziplora_lsq import Parameters, fit_layer, least_squares, solve
from ziplora.pair import DIRECT, Coefficients, Pair
from ziplora.store import Store

from .conftest import FEED_FORWARD, Lora, MakeLora
from .test_methods import assert_same_columns, problem_of

WIDTH = 6
ONES = torch.ones(2 * WIDTH, dtype=torch.float64)
LEFT, RIGHT = torch.arange(WIDTH) < 3, torch.arange(WIDTH) >= 3
"""Two halves of a layer's input features."""


def chance(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(rank: int, seed: int, reads: Tensor = LEFT | RIGHT) -> Layer:
    return Layer(chance(rank, WIDTH, seed=seed) * reads, chance(5, rank, seed=seed + 100), 0.5)


def moment(seed: int, present: Tensor = LEFT | RIGHT) -> Tensor:
    tokens = chance(40, WIDTH, seed=seed) * present
    return tokens.T @ tokens / 40


SUBJECT, STYLE = layer(4, 1), layer(2, 2)
MOMENTS = (moment(3), moment(4))


def test_adapters_that_do_not_meet_stay_as_they_are() -> None:
    """Either reads features that only its own inputs have."""
    found = fit_layer(layer(4, 1, LEFT), layer(2, 2, RIGHT), (moment(3, LEFT), moment(4, RIGHT)), ridge=0.01)
    assert torch.equal(found, ONES)


def test_of_inputs_that_do_not_meet_each_adapter_gets_its_own() -> None:
    found = fit_layer(SUBJECT, STYLE, (moment(3, LEFT), moment(4, RIGHT)), ridge=1e-10)
    torch.testing.assert_close(found, torch.cat((LEFT, RIGHT)).double(), rtol=0, atol=1e-5)


def test_twins_share_evenly() -> None:
    found = fit_layer(SUBJECT, SUBJECT, (MOMENTS[0], MOMENTS[0]), ridge=1e-10)
    torch.testing.assert_close(found, ONES / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_the_ridge_holds_twins_of_one_column_near_one(ridge: float) -> None:
    """(2 m − 1)² + ridge · (m − 1)² is least at m = (1 + ridge) / (2 + ridge), in whatever unit the change is."""
    one = Layer(torch.ones(1, 1, dtype=torch.float64), chance(5, 1, seed=1), 1e-3)
    found = fit_layer(one, one, [torch.ones(1, 1, dtype=torch.float64)] * 2, ridge)
    torch.testing.assert_close(found, torch.full((2,), (1 + ridge) / (2 + ridge), dtype=torch.float64))


def test_where_one_adapter_changes_nothing_the_other_stays_as_it_is() -> None:
    nothing = replace(STYLE, up=0 * STYLE.up)
    assert torch.equal(fit_layer(SUBJECT, nothing, MOMENTS, ridge=0.01), ONES)
    assert torch.equal(fit_layer(nothing, SUBJECT, MOMENTS, ridge=0.01), ONES)
    assert torch.equal(fit_layer(SUBJECT, STYLE, (0 * MOMENTS[0], 0 * MOMENTS[1]), ridge=0.01), ONES)


def test_swapping_the_roles_swaps_the_columns() -> None:
    found = fit_layer(SUBJECT, STYLE, MOMENTS, ridge=0.01)
    swapped = fit_layer(STYLE, SUBJECT, MOMENTS[::-1], ridge=0.01)
    torch.testing.assert_close(found, swapped.roll(WIDTH))
    assert (found - 1).abs().max() > 0.1


def test_neither_basis_nor_unit_matter() -> None:
    turn = chance(4, 4, seed=5)
    turned = Layer(turn @ SUBJECT.down, SUBJECT.up @ torch.linalg.inv(turn) / 8, SUBJECT.scale * 8)
    found = fit_layer(turned, STYLE, [1e6 * one for one in MOMENTS], ridge=0.01)
    torch.testing.assert_close(found, fit_layer(SUBJECT, STYLE, MOMENTS, ridge=0.01), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def problem(backbone: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(backbone, Store(tmp_path_factory.mktemp("store")), subject, style)


def test_both_sides_come_nearer_on_noise_never_seen(
    problem: Problem, backbone: Sdxl, subject: Lora, style: Lora, store: Store
) -> None:
    heard = []
    solution = solve(replace(problem, progress=lambda done, total: heard.append((done, total))), Parameters(passes=2))
    assert heard == [(1, 2), (2, 2)]
    sides = [
        calibrate(lora.calibration(seed=1), lora.path, backbone, store, lora.references) for lora in (subject, style)
    ]
    unseen = replace(problem, subject=sides[0], style=sides[1])
    for found, start in zip(
        relative_errors(unseen, solution.coefficients), relative_errors(unseen, DIRECT), strict=True
    ):
        assert found < 0.9 * start
    assert solution.losses is not None
    assert (solution.losses.first_subject, solution.losses.first_style) == relative_errors(problem, DIRECT)
    assert solution.losses.last_subject < 0.9 * solution.losses.first_subject
    assert solution.losses.last_style < 0.9 * solution.losses.first_style
    assert solution.losses.curve == ()


def test_swapping_the_roles_of_a_pair_swaps_the_result(
    backbone64: Sdxl, subject: Lora, style: Lora, store: Store
) -> None:
    found = least_squares(problem_of(backbone64, store, subject, style), Parameters(passes=2))
    swapped = least_squares(problem_of(backbone64, store, style, subject), Parameters(passes=2))
    assert_same_columns(Coefficients(swapped.style, swapped.subject), found, tolerance=1e-7)


def test_the_form_of_a_parent_does_not_matter(backbone64: Sdxl, subject: Lora, style: Lora, store: Store) -> None:
    """Neither to the fit nor to the inputs it is made from, which are computed anew under another id."""
    found = problem_of(backbone64, store, subject, style)
    assert found.subject is not None
    rewritten = {
        module: replace(layer, down=layer.down.flip(0) / 4, up=layer.up.flip(1), scale=layer.scale * 4)
        for module, layer in found.pair.subject.items()
    }
    anew = replace(found.subject, calibration_id="rewritten")
    other = replace(found, pair=Pair(rewritten, found.pair.style), subject=anew)
    assert_same_columns(
        least_squares(other, Parameters(passes=1)), least_squares(found, Parameters(passes=1)), tolerance=1e-7
    )


def test_only_attention_layers_of_both_are_fitted(
    backbone: Sdxl, style: Lora, make_lora: MakeLora, store: Store
) -> None:
    queries = make_lora("queries", ends=("to_q", *FEED_FORWARD), seed=51)
    problem = problem_of(backbone, store, queries, style)
    found = least_squares(problem, Parameters())
    assert len(problem.pair.merged) == 14
    assert found.subject.keys() == found.style.keys() == set(problem.pair.merged)


def test_bfloat16_finds_nearly_the_same(
    problem: Problem, base_folder: Path, subject: Lora, style: Lora, store: Store
) -> None:
    half = problem_of(load_backbone(base_folder, "cpu", "bfloat16"), store, subject, style)
    found, wanted = (solve(one, Parameters(passes=2)) for one in (half, problem))
    assert {vector.dtype for vector in found.coefficients.subject.values()} == {torch.float32}
    assert found.losses is not None
    assert wanted.losses is not None
    for side in ("first_subject", "first_style", "last_subject", "last_style"):
        assert getattr(found.losses, side) == pytest.approx(getattr(wanted.losses, side), rel=0.1)


def test_a_ridge_that_holds_everything_is_a_failed_merge(problem: Problem) -> None:
    with pytest.raises(
        Failure, match=r"At ridge 1e\+06 no coefficient moved by more than .* the direct merge"
    ) as caught:
        solve(problem, Parameters(ridge=1e6))
    assert caught.value.code == "MERGE_UNMOVED"


def test_a_ridge_below_rounding_is_a_failed_merge(backbone: Sdxl, subject: Lora, store: Store) -> None:
    """Of twins only the sum of their coefficients is determined."""
    twins = problem_of(backbone, store, subject, subject)
    with pytest.raises(Failure, match=r"At .*attn.* least squares with ridge 1e-30 has no single solution") as caught:
        least_squares(twins, Parameters(ridge=1e-30))
    assert caught.value.code == "SINGULAR_LAYER"
    assert caught.value.next_step == "raise the ridge; 0.01 is the default."


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"ridge": 0}, "Parameter ridge is not above 0"),
        ({"ridge": float("inf")}, "Parameter ridge is not above 0"),
        ({"passes": 0}, "Parameter passes is 0, less than 1"),
    ],
)
def test_a_wrong_parameter_is_named(given: Mapping[str, Any], fact: str) -> None:
    with pytest.raises(Failure) as caught:
        complete_parameters("ziplora-lsq", given)
    assert caught.value.code == "PARAMETER_INVALID"
    assert fact in caught.value.fact

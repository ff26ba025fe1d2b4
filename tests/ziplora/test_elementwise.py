"""TIES and DARE are rules for single numbers of dense changes; their files hold as much of these as a rank can."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ziplora.adapter import Layer, read
from ziplora.backbone import Sdxl
from ziplora.elementwise import Elementwise, combined
from ziplora.export import materialise
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.merge import finished, merge, read_coefficients
from ziplora.methods import complete_parameters
from ziplora.pair import DIRECT, Coefficients, Pair, merged_layers
from ziplora.recipe import Export, MergeResult, Recipe
from ziplora.store import Store

from .conftest import Lora, recipe_of
from .oracle import dense
from .test_pair import CONV, FF, TO_OUT, TO_Q


def layer(rank: int, seed: int, kernel: tuple[int, ...] = ()) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 24, *kernel, generator=generator, dtype=torch.float64)
    return Layer(down, torch.randn(20, rank, generator=generator, dtype=torch.float64), 0.5)


PAIR = Pair(
    {TO_Q: layer(4, 1), TO_OUT: layer(2, 2), FF: layer(4, 3), CONV: layer(4, 4, (3, 3))},
    {TO_Q: layer(2, 5), TO_OUT: layer(4, 6), CONV: layer(1, 7, (3, 3))},
)
TIES, DARE = Elementwise("ties", 0.2), Elementwise("dare", 0.5)


def by_ties(subject: Tensor, style: Tensor, density: float, strength: float = 1.0) -> Tensor:
    """Trim, elect a sign, take the mean of those that have it, number by number."""
    trimmed = []
    for change in (subject, style):
        least = change.abs().flatten().sort(descending=True).values[int(density * change.numel()) - 1]
        trimmed.append([value if abs(value) >= least else 0.0 for value in change.flatten().tolist()])
    merged = []
    for a, b in zip(*trimmed, strict=True):
        sign = 1 if a + b >= 0 else -1
        chosen = [weight * value for weight, value in ((1.0, a), (strength, b)) if value * sign > 0]
        merged.append(sum(chosen) / len(chosen) if chosen else 0.0)
    return torch.tensor(merged, dtype=torch.float64).view_as(subject)


def made_of(kept: Elementwise, module: Module = TO_Q, strength: float = 1.0) -> Tensor:
    return combined(kept, module, PAIR.subject[module], PAIR.style[module], strength)


def matrix(change: Tensor) -> Layer:
    return Layer(torch.eye(change.shape[1], dtype=torch.float64), change, 1.0)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.999])
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_ties_is_the_papers_rule(density: float, strength: float) -> None:
    for module in PAIR.merged:
        wanted = by_ties(PAIR.subject[module].delta(), PAIR.style[module].delta(), density, strength)
        torch.testing.assert_close(made_of(Elementwise("ties", density), module, strength), wanted)


def test_ties_by_hand() -> None:
    """Three of four are kept of either; both agree, one is alone, the larger side has the sign."""
    subject = torch.tensor([[4.0, 3.0], [-5.0, 0.5]], dtype=torch.float64)
    style = torch.tensor([[2.0, 0.1], [6.0, -1.0]], dtype=torch.float64)
    wanted = torch.tensor([[3.0, 3.0], [6.0, -1.0]], dtype=torch.float64)
    for one, other in ((subject, style), (style, subject)):
        assert torch.equal(combined(Elementwise("ties", 0.75), TO_Q, matrix(one), matrix(other)), wanted)


def test_dare_keeps_by_chance_and_makes_up_for_the_rest() -> None:
    subject, style, found = PAIR.subject[TO_Q].delta(), PAIR.style[TO_Q].delta(), made_of(DARE)
    candidates = torch.stack([0 * subject, 2 * subject, 2 * style, 2 * (subject + style)])
    distances, which = (candidates - found).abs().min(dim=0)
    assert float(distances.max()) < 1e-12
    assert torch.bincount(which.flatten()).tolist() == pytest.approx([120] * 4, abs=40)
    many = torch.stack([made_of(Elementwise("dare", 0.5, seed)) for seed in range(400)])
    spread = float(many.std() / math.sqrt(400))
    assert float((many.mean(0) - subject - style).abs().max()) < 6 * spread


def test_what_dare_leaves_out_is_the_seeds_and_the_layers() -> None:
    before = torch.get_rng_state()
    assert torch.equal(made_of(DARE), made_of(DARE))
    assert torch.equal(torch.get_rng_state(), before)
    left_out = {tuple((made_of(kept, module) == 0).flatten().tolist()) for kept, module in (
        (DARE, TO_Q), (Elementwise("dare", 0.5, seed=1), TO_Q), (DARE, TO_OUT)
    )}  # fmt: skip
    assert len(left_out) == 3


def test_a_weaker_style_is_less_of_the_same_merge() -> None:
    for kept in (TIES, DARE):
        none, half, whole = (made_of(kept, strength=strength) for strength in (0.0, 0.5, 1.0))
        torch.testing.assert_close(half, (none + whole) / 2)
        assert not torch.allclose(none, whole)


@pytest.mark.parametrize("kept", [TIES, DARE], ids=["ties", "dare"])
def test_a_layer_is_the_nearest_of_the_rank_of_both(kept: Elementwise) -> None:
    found = merged_layers(PAIR, Coefficients({}, {}, elementwise=kept), 0.5)
    for module in PAIR.merged:
        outputs, values, inputs = torch.linalg.svd(made_of(kept, module, 0.5), full_matrices=False)
        assert found[module].rank == 6
        assert float(values[6]) > 0.1
        torch.testing.assert_close(found[module].delta(), outputs[:, :6] * values[:6] @ inputs[:6])


def test_other_layers_pass_through() -> None:
    found, direct = merged_layers(PAIR, Coefficients({}, {}, elementwise=TIES)), merged_layers(PAIR, DIRECT)
    assert found.keys() == direct.keys()
    for module in (FF, CONV):
        assert torch.equal(found[module].delta(), direct[module].delta())


@pytest.fixture(scope="module", params=["ties", "dare"])
def made(
    request: pytest.FixtureRequest, subject: Lora, style: Lora, backbone: Sdxl, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Store, MergeResult]:
    recipe = recipe_of(subject, style, request.param, seed=3)
    store = Store(tmp_path_factory.mktemp("store"))
    return recipe, store, merge(recipe, subject.path, style.path, backbone, store)


def test_the_record_says_what_the_rank_cannot_hold(
    made: tuple[Recipe, Store, MergeResult], subject: Lora, style: Lora
) -> None:
    recipe, store, result = made
    kept = read_coefficients(store, recipe.merge_id).elementwise
    assert kept is not None
    changes, lost, whole = (dense(subject.unet), dense(style.unet)), 0.0, 0.0
    for name in changes[0]:
        change = combined(kept, Module("unet", name), matrix(changes[0][name]), matrix(changes[1][name]))
        squares = torch.linalg.svdvals(change).square()
        lost += float(squares[subject.unet[name].rank + style.unet[name].rank :].sum())
        whole += float(squares.sum())
    assert result.rank_error == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
    assert math.sqrt(lost / whole) > 0.1
    assert (result.losses, result.movement) == (None, 1 - kept.density)
    assert finished(store, recipe.merge_id) == result


def test_the_store_holds_density_and_seed(made: tuple[Recipe, Store, MergeResult]) -> None:
    recipe, store, _ = made
    found = read_coefficients(store, recipe.merge_id)
    wanted = Elementwise("ties", 0.2) if recipe.method == "ties" else Elementwise("dare", 0.5, seed=3)
    assert (found.subject, found.style, found.projection, found.elementwise) == ({}, {}, 0.0, wanted)


def test_the_file_is_as_large_as_any_other_and_the_same_each_time(
    made: tuple[Recipe, Store, MergeResult], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store, _ = made
    path, threads, hashes = tmp_path / "merged.safetensors", torch.get_num_threads(), set()
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        hashes.add(materialise(recipe, subject.path, style.path, store, path, Export(style_strength=0.5)).sha256)
    torch.set_num_threads(threads)
    assert len(hashes) == 1
    assert read(path).facts.ranks == (2, 6, 8, 12)


@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize("density", [0.0, 1.0, -0.2, float("nan")])
def test_a_density_that_keeps_all_or_nothing_is_refused(method: str, density: float) -> None:
    with pytest.raises(Failure, match=r"Parameter density is .*, not between 0 and 1") as caught:
        complete_parameters(method, {"density": density})
    assert caught.value.code == "PARAMETER_INVALID"

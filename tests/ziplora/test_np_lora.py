"""NP-LoRA is the paper's formula, an ordinary LoRA of both ranks, and one number in the store."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ziplora.adapter import Layer, read
from ziplora.backbone import Sdxl
from ziplora.export import materialise
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.merge import merge, read_coefficients
from ziplora.methods import complete_parameters
from ziplora.pair import DIRECT, Coefficients, Pair, merged_layers
from ziplora.recipe import Export, Recipe
from ziplora.store import Store

from .conftest import Lora, recipe_of
from .oracle import dense
from .test_pair import CONV, FF, TO_OUT, TO_Q, deltas, layer

PAIR = Pair(
    {TO_Q: layer(4, 1), TO_OUT: layer(4, 2), FF: layer(4, 3), CONV: layer(4, 4, (3, 3))},
    {TO_Q: layer(2, 5), TO_OUT: layer(4, 6, scale=2.0), CONV: layer(1, 7, (3, 3))},
)
HALF = Coefficients({}, {}, projection=0.5)


def by_the_paper(subject: Tensor, style: Tensor, style_down: Tensor, share: float) -> Tensor:
    """ΔW_s + ΔW_c (I − k Q Qᵀ), Q from the thin QR of A_sᵀ."""
    basis: Tensor = torch.linalg.qr(style_down.double().T).Q
    return style + subject - share * subject @ basis @ basis.T


def left_by(one: Layer) -> Tensor:
    """What is left of the subject when everything that this style reads is taken away."""
    pair = Pair({TO_Q: layer(4, 1)}, {TO_Q: one})
    return merged_layers(pair, replace(HALF, projection=1.0), style_strength=0.0)[TO_Q].delta()


@pytest.mark.parametrize("share", [1 / 3, 1.0])
def test_it_is_the_papers_formula(share: float) -> None:
    found = deltas(merged_layers(PAIR, replace(HALF, projection=share)))
    for module in (TO_Q, TO_OUT):
        subject, style = PAIR.subject[module], PAIR.style[module]
        wanted = by_the_paper(subject.delta(), style.delta(), style.down, share)
        torch.testing.assert_close(found[module], wanted, rtol=1e-12, atol=1e-12)


def test_other_layers_pass_through() -> None:
    found, direct = deltas(merged_layers(PAIR, HALF)), deltas(merged_layers(PAIR, DIRECT))
    assert found.keys() == direct.keys()
    for module in (FF, CONV):
        assert torch.equal(found[module], direct[module])


def test_the_form_of_the_style_does_not_matter() -> None:
    """Neither another basis nor a rank that is not used, whether the superfluous rows read something or not."""
    style = layer(2, 5)
    wanted = left_by(style)
    turn = torch.tensor([[1.0, 2.0], [-1.0, 4.0]], dtype=torch.float64)
    random, zeros = layer(1, 6).down, torch.zeros(5, 1, dtype=torch.float64)
    for other in (
        Layer(turn @ style.down, style.up @ torch.linalg.inv(turn), 8.0),
        Layer(torch.cat((style.down, random)), torch.cat((style.up, zeros), dim=1), 1.0),
        Layer(torch.cat((style.down, 0 * random)), torch.cat((style.up, zeros + 1), dim=1), 1.0),
        Layer(torch.cat((style.down, style.down.sum(0, keepdim=True))), torch.cat((style.up, zeros + 1), dim=1), 1.0),
    ):
        torch.testing.assert_close(left_by(other), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("nothing", [replace(layer(2, 5), up=torch.zeros(5, 2)), replace(layer(2, 5), scale=0.0)])
def test_a_style_that_changes_nothing_leaves_the_subject_as_it_is(nothing: Layer) -> None:
    assert torch.equal(left_by(nothing), layer(4, 1).delta())


def test_a_style_that_reads_all_that_the_subject_reads_leaves_nothing() -> None:
    assert float(left_by(layer(4, 1)).abs().max()) < 1e-12


def test_style_strength_leaves_the_subjects_part_as_the_merge_made_it() -> None:
    whole, subject_alone = merged_layers(PAIR, HALF)[TO_Q], merged_layers(PAIR, HALF, style_strength=0.0)[TO_Q]
    torch.testing.assert_close(subject_alone.delta(), whole.delta() - PAIR.style[TO_Q].delta())
    assert not torch.allclose(subject_alone.delta(), PAIR.subject[TO_Q].delta())


@pytest.fixture(scope="module")
def made(subject: Lora, style: Lora, backbone: Sdxl, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Store]:
    recipe, store = recipe_of(subject, style, "np-lora"), Store(tmp_path_factory.mktemp("store"))
    result = merge(recipe, subject.path, style.path, backbone, store)
    assert result.losses is None
    assert (result.subject_mean, result.style_mean) == (1, 1)
    assert result.movement == pytest.approx(1 / 3)
    return recipe, store


def test_the_store_holds_one_number(made: tuple[Recipe, Store]) -> None:
    recipe, store = made
    found = read_coefficients(store, recipe.merge_id)
    assert (found.subject, found.style, found.projection) == ({}, {}, 0.5 / 1.5)


def test_another_mu_is_another_merge(subject: Lora, style: Lora) -> None:
    ids = {recipe_of(subject, style, "np-lora", mu=mu).merge_id for mu in (0.5, 0.6)}
    assert len(ids) == 2


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 3e-3)])
def test_the_file_is_the_formula_at_the_rank_of_both(
    precision: str, tolerance: float, made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    path = tmp_path / "merged.safetensors"
    export = Export(precision=precision)  # type: ignore[arg-type]
    materialise(recipe, subject.path, style.path, store, path, export)
    written = read(path).layers
    changes = dense(subject.unet), dense(style.unet)
    for name in changes[0]:
        wanted = by_the_paper(changes[0][name], changes[1][name], style.unet[name].down, 1 / 3)
        found = written[Module("unet", name)]
        assert (found.delta() - wanted).abs().max() <= tolerance * wanted.abs().max()
        assert found.rank == torch.linalg.matrix_rank(wanted) == subject.unet[name].rank + style.unet[name].rank
    assert len(written) == 56 + 14


def test_the_same_bytes_each_time_however_many_threads(
    made: tuple[Recipe, Store], subject: Lora, style: Lora, tmp_path: Path
) -> None:
    recipe, store = made
    threads, hashes = torch.get_num_threads(), set()
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        hashes.add(materialise(recipe, subject.path, style.path, store, tmp_path / "merged.safetensors").sha256)
    torch.set_num_threads(threads)
    assert len(hashes) == 1


def test_without_a_mu_there_is_no_projection() -> None:
    with pytest.raises(Failure, match="Parameter mu is not above 0"):
        complete_parameters("np-lora", {"mu": 0})

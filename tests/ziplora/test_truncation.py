"""A merge at a smaller rank is the nearest one there is, and says how near: held against dense SVDs."""

import pytest
import torch
from torch import Tensor

from ziplora.adapter import Layer
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.pair import merged_layers
from ziplora.recipe import Export
from ziplora.truncation import nearest, truncated

from .test_pair import CONV, FF, PAIR, TO_OUT, TO_Q, chance, layer

MERGED = merged_layers(PAIR, chance(PAIR))


def best(change: Tensor, rank: int) -> Tensor:
    """Eckart and Young, on the matrix in full."""
    outputs, values, inputs = torch.linalg.svd(change.flatten(1), full_matrices=False)
    kept: Tensor = (outputs[:, :rank] * values[:rank]) @ inputs[:rank]
    return kept.view_as(change)


def all_changes(layers: dict[Module, Layer]) -> Tensor:
    return torch.cat([one.delta().flatten() for one in layers.values()])


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_no_other_layers_of_that_rank_are_nearer(rank: int) -> None:
    found, error = truncated(MERGED, rank)
    for module, one in found.items():
        assert one.rank == rank
        torch.testing.assert_close(one.delta(), best(MERGED[module].delta(), rank), rtol=1e-10, atol=1e-10)
    whole = all_changes(MERGED)
    assert error == pytest.approx(float((whole - all_changes(found)).norm() / whole.norm()), rel=1e-10)


def test_layers_that_have_no_more_are_left_as_they_are() -> None:
    found, _ = truncated(MERGED, 5)
    assert {module: one.rank for module, one in found.items()} == {TO_Q: 5, TO_OUT: 5, FF: 4, CONV: 5}
    assert all(found[module] is MERGED[module] for module in (FF, CONV))
    unchanged, error = truncated(MERGED, 12)
    assert (unchanged, error) == (MERGED, 0.0)


def test_a_rank_that_is_not_used_costs_nothing() -> None:
    """Rank 12 on 5 outputs; the same twice; a style of no strength."""
    twice = Layer(MERGED[FF].down.repeat(2, 1), MERGED[FF].up.repeat(1, 2), 0.5)
    alone = merged_layers(PAIR, chance(PAIR), style_strength=0.0)[TO_Q]
    for one, rank in ((MERGED[TO_OUT], 5), (twice, 4), (alone, 4)):
        kept, dropped = nearest(one, rank)
        torch.testing.assert_close(kept.delta(), one.delta(), rtol=1e-10, atol=1e-10)
        assert float(dropped.sum()) < 1e-10


def test_a_rank_beyond_what_a_weight_can_have_is_not_made_up() -> None:
    wide = layer(12, 3)
    kept, dropped = nearest(wide, 9)
    assert (kept.rank, len(dropped)) == (5, 0)
    torch.testing.assert_close(kept.delta(), wide.delta())


def test_the_scale_is_shared_evenly_by_up_and_down() -> None:
    kept, _ = nearest(layer(4, 1, (3, 3), scale=8.0), 3)
    assert (kept.scale, kept.down.shape) == (1.0, (3, 6, 3, 3))
    values = torch.linalg.svdvals(layer(4, 1, (3, 3), scale=8.0).delta().flatten(1))[:3]
    torch.testing.assert_close(kept.down.flatten(1).norm(dim=1).square(), values)
    torch.testing.assert_close(kept.up.norm(dim=0).square(), values)


def test_the_form_of_the_factors_leaves_no_trace() -> None:
    """Neither their basis nor the signs that a QR or an SVD may choose."""
    one = layer(4, 1)
    turned = Layer(-one.down.flip(0) / 4, -one.up.flip(1), one.scale * 4)
    (kept, _), (again, _) = nearest(one, 3), nearest(turned, 3)
    torch.testing.assert_close(again.down, kept.down, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again.up, kept.up, rtol=1e-10, atol=1e-10)


def test_layers_that_change_nothing_can_be_cut_too() -> None:
    found, error = truncated({TO_Q: Layer(torch.zeros(4, 6), torch.zeros(5, 4), 1.0)}, 2)
    assert error == 0.0
    assert found[TO_Q].rank == 2
    assert not found[TO_Q].delta().any()


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"rank": 0}, "A file of rank 0 holds nothing"),
        ({"rank": -4}, "A file of rank -4 holds nothing"),
        ({"style_strength": float("nan")}, "A style strength of nan is not a finite number"),
        ({"style_strength": float("inf")}, "A style strength of inf is not a finite number"),
    ],
)
def test_an_export_that_cannot_be_is_refused(given: dict[str, float], fact: str) -> None:
    with pytest.raises(Failure, match=fact) as caught:
        Export(**given)  # type: ignore[arg-type]
    assert caught.value.code == "EXPORT_INVALID"

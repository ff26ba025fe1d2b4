"""A merge is an ordinary LoRA: the direct sum at ones, one LoRA at zeros, whatever form its parents are written in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.sdxl import SDXL, build_unet
from ziplora.adapter import Layer
from ziplora.keys import Module
from ziplora.pair import Coefficients, Pair, merged_layers

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
TO_Q, TO_OUT = Module("unet", f"{BLOCK}.attn1.to_q"), Module("unet", f"{BLOCK}.attn2.to_out.0")
FF, CONV = Module("unet", f"{BLOCK}.ff.net.2"), Module("unet", "mid_block.resnets.0.conv1")
TEXT = Module("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
NOTHING = Coefficients({}, {})


def layer(rank: int, seed: int, kernel: tuple[int, ...] = (), scale: float = 0.5) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 6, *kernel, generator=generator, dtype=torch.float64)
    return Layer(down, torch.randn(5, rank, generator=generator, dtype=torch.float64), scale)


PAIR = Pair(
    {TO_Q: layer(4, 1), TO_OUT: layer(4, 2), FF: layer(4, 3), CONV: layer(4, 4, (3, 3))},
    {TO_Q: layer(2, 5), TO_OUT: layer(8, 6, scale=2.0), CONV: layer(1, 7, (3, 3)), TEXT: layer(2, 8)},
)


def chance(pair: Pair, seed: int = 9) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    sides = [
        {module: torch.randn(6, generator=generator, dtype=torch.float64) for module in pair.merged} for _ in range(2)
    ]
    return Coefficients(sides[0], sides[1])


def deltas(layers: dict[Module, Layer]) -> dict[Module, Tensor]:
    return {module: one.delta() for module, one in layers.items()}


def assert_same(found: dict[Module, Tensor], wanted: dict[Module, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for module, delta in wanted.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-12, atol=1e-12)


def test_what_is_merged_passed_through_and_left_out() -> None:
    assert PAIR.merged == (TO_Q, TO_OUT)
    assert set(PAIR.passed_through) == {FF, CONV}
    assert PAIR.left_out == (f"style text_encoder.{TEXT.path}",)


def test_on_sdxl_they_are_the_papers_layers() -> None:
    """560 layers with 785,920 input features: 1.57 million coefficients for both sides."""
    with torch.device("meta"):
        unet = build_unet(SDXL)
    layers = {
        Module("unet", path): Layer(torch.empty(1, module.in_features), torch.empty(module.out_features, 1), 1.0)
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear)
    }
    merged = Pair(layers, layers).merged
    assert len(merged) == 560
    assert sum(layers[module].down.shape[1] for module in merged) == 785_920


@given(
    subject=st.sets(st.sampled_from([TO_Q, TO_OUT, FF, CONV, TEXT])),
    style=st.sets(st.sampled_from([TO_Q, TO_OUT, FF, CONV, TEXT])),
)
@settings(deadline=None)
def test_every_layer_has_one_fate(subject: set[Module], style: set[Module]) -> None:
    pair = Pair({module: layer(1, 1) for module in subject}, {module: layer(1, 2) for module in style})
    unet = {module for module in subject | style if module.part == "unet"}
    assert set(pair.merged) | set(pair.passed_through) == unet == merged_layers(pair, NOTHING).keys()
    assert not set(pair.merged) & set(pair.passed_through)
    assert set(pair.merged) == {TO_Q, TO_OUT} & subject & style
    assert len(pair.left_out) == (TEXT in subject) + (TEXT in style)


def test_ones_are_the_direct_sum() -> None:
    ones = {module: torch.ones(6, dtype=torch.float64) for module in PAIR.merged}
    wanted = {
        module: sum((side[module].delta() for side in (PAIR.subject, PAIR.style) if module in side), torch.zeros(()))
        for module in PAIR.unet
    }
    assert_same(deltas(merged_layers(PAIR, Coefficients(ones, ones))), wanted)
    assert_same(deltas(merged_layers(PAIR, NOTHING)), wanted)


def test_columns_are_scaled() -> None:
    coefficients = chance(PAIR)
    found = merged_layers(PAIR, coefficients)[TO_OUT].delta()
    wanted = PAIR.subject[TO_OUT].delta() * coefficients.subject[TO_OUT]
    wanted = wanted + PAIR.style[TO_OUT].delta() * coefficients.style[TO_OUT]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_side_of_zeros_is_the_other_lora_exactly() -> None:
    pair = Pair({TO_Q: layer(4, 1)}, {TO_Q: layer(2, 5)})
    zeros, ones = {TO_Q: torch.zeros(6)}, {TO_Q: torch.ones(6)}
    assert_same(deltas(merged_layers(pair, Coefficients(ones, zeros))), {TO_Q: pair.subject[TO_Q].delta()})
    assert_same(deltas(merged_layers(pair, Coefficients(zeros, ones))), {TO_Q: pair.style[TO_Q].delta()})


def test_style_strength_zero_is_the_subject_alone() -> None:
    subject = {module: one for module, one in PAIR.subject.items() if module.part == "unet"}
    found = deltas(merged_layers(PAIR, NOTHING, style_strength=0.0))
    assert_same({module: found[module] for module in subject}, deltas(subject))


def test_a_pair_on_a_device_is_merged_there() -> None:
    """With coefficients from wherever; layers of text encoders stay where they are."""
    there = PAIR.on(torch.device("meta"))
    layers, wanted = merged_layers(there, chance(PAIR)), merged_layers(PAIR, chance(PAIR))
    assert {factor.device.type for layer in layers.values() for factor in (layer.down, layer.up)} == {"meta"}
    assert {module: one.down.shape for module, one in layers.items()} == {
        module: one.down.shape for module, one in wanted.items()
    }
    assert there.style[TEXT] is PAIR.style[TEXT]


def test_roles_swap_with_the_coefficients() -> None:
    coefficients = chance(PAIR)
    swapped = merged_layers(Pair(PAIR.style, PAIR.subject), Coefficients(coefficients.style, coefficients.subject))
    assert_same(deltas(swapped), deltas(merged_layers(PAIR, coefficients)))


@pytest.mark.parametrize("split", [0.25, 8.0], ids=["weaker-alpha", "stronger-alpha"])
def test_the_form_of_a_parent_does_not_matter(split: float) -> None:
    """Another basis of the same rank, the scale moved between alpha and the matrices."""
    basis = layer(4, 11).down[:, :4]

    def rewritten(one: Layer) -> Layer:
        turn = basis[: one.rank, : one.rank] + 3 * torch.eye(one.rank, dtype=torch.float64)
        down = (turn @ one.down.flatten(1)).reshape(one.down.shape)
        return Layer(down / split, one.up @ torch.linalg.inv(turn), one.scale * split)

    subject = {module: rewritten(one) for module, one in PAIR.subject.items()}
    coefficients = chance(PAIR)
    found, wanted = merged_layers(Pair(subject, PAIR.style), coefficients), merged_layers(PAIR, coefficients)
    assert_same(deltas(found), deltas(wanted))


def test_the_rank_is_the_sum_of_the_ranks() -> None:
    merged = merged_layers(PAIR, chance(PAIR))
    assert {module: one.rank for module, one in merged.items()} == {TO_Q: 6, TO_OUT: 12, FF: 4, CONV: 5}
    assert {one.scale for one in merged.values()} == {1.0}


def test_a_convolution_of_one_pixel_may_be_written_as_a_matrix() -> None:
    pair = Pair({FF: layer(2, 1, (1, 1))}, {FF: layer(3, 2)})
    wanted = pair.subject[FF].delta().flatten(1) + pair.style[FF].delta()
    torch.testing.assert_close(merged_layers(pair, NOTHING)[FF].delta(), wanted)


def test_movement_is_the_largest_distance_from_one() -> None:
    assert NOTHING.movement() == 0
    assert Coefficients({TO_Q: torch.tensor([1.0, 0.9])}, {TO_Q: torch.tensor([1.25, 1.0])}).movement() == 0.25


def test_movement_by_block_is_the_mean_distance_from_one_of_either_side() -> None:
    deep = Module("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    subject = {TO_Q: torch.tensor([1.0, 0.5]), TO_OUT: torch.tensor([1.5, 1.0]), deep: torch.tensor([1.0, 1.0])}
    style = {TO_Q: torch.tensor([1.0, 1.0]), TO_OUT: torch.tensor([0.0, 1.0]), deep: torch.tensor([3.0, 1.0])}
    moved = Coefficients(subject, style).movement_by_block()
    assert moved == {"mid_block": (0.25, 0.25), "down_blocks.1": (0.0, 1.0)}
    assert NOTHING.movement_by_block() == {}

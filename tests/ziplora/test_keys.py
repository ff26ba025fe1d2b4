"""Names as real SDXL files have them are understood, every module's name survives the way there and back."""

import csv
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.sdxl import SDXL, build_unet
from ziplora.keys import Module, Side, diffusers_key, kohya_key, parse, parse_all

with (Path(__file__).parents[1] / "dialects" / "sdxl.tsv").open(encoding="utf-8") as table:
    REAL_NAMES = list(csv.DictReader(table, delimiter="\t"))
MATRICES: tuple[Literal["down", "up"], ...] = ("down", "up")
SIDES: tuple[Side, ...] = ("down", "up", "alpha")
TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

numbers = st.integers(0, 120).map(str)
inside_attention = st.one_of(
    st.sampled_from(["proj_in", "proj_out"]),
    st.builds(
        "transformer_blocks.{}.{}".format,
        numbers,
        st.sampled_from(
            [f"attn{which}.{name}" for which in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
            + ["ff.net.0.proj", "ff.net.2"]
        ),
    ),
)
inside_resnet = st.sampled_from(["conv1", "conv2", "conv_shortcut", "time_emb_proj"])


def in_blocks(blocks: st.SearchStrategy[str], layers: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{}.attentions.{}.{}".format, blocks, layers, inside_attention),
        st.builds("{}.resnets.{}.{}".format, blocks, layers, inside_resnet),
    )


outside_blocks = st.sampled_from(
    ["conv_in", "conv_out"] + [f"{kind}_embedding.linear_{which}" for kind in ("time", "add") for which in (1, 2)]
)
samplers = st.one_of(
    numbers.map("down_blocks.{}.downsamplers.0.conv".format), numbers.map("up_blocks.{}.upsamplers.0.conv".format)
)
any_block = st.one_of(numbers.map("down_blocks.{}".format), numbers.map("up_blocks.{}".format), st.just("mid_block"))
unet_paths = st.one_of(outside_blocks, samplers, in_blocks(any_block, numbers))
text_paths = st.builds(
    "text_model.encoder.layers.{}.{}".format,
    numbers,
    st.sampled_from([f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]),
)
modules = st.one_of(
    unet_paths.map(lambda path: Module("unet", path)),
    text_paths.map(lambda path: Module("text_encoder", path)),
    text_paths.map(lambda path: Module("text_encoder_2", path)),
)


def numbered_paths(layers_per_block: int) -> st.SearchStrategy[str]:
    """The modules that a UNet with so many layers per block can have, of at most 20 blocks each way."""
    few = st.integers(0, 20).map(str)
    down = in_blocks(few.map("down_blocks.{}".format), st.integers(0, layers_per_block - 1).map(str))
    up = in_blocks(few.map("up_blocks.{}".format), st.integers(0, layers_per_block).map(str))
    middle = st.one_of(
        inside_attention.map("mid_block.attentions.0.{}".format),
        st.builds("mid_block.resnets.{}.{}".format, st.integers(0, 1).map(str), inside_resnet),
    )
    samplers = st.sampled_from(["down_blocks.{}.downsamplers.0.conv", "up_blocks.{}.upsamplers.0.conv"])
    sampling = st.builds(str.format, samplers, few)
    return st.one_of(outside_blocks, sampling, down, up, middle)


@pytest.mark.parametrize("row", REAL_NAMES, ids=lambda row: row["key"])
def test_a_real_name_is_understood(row: dict[str, str]) -> None:
    name = parse(row["key"], layers_per_block=2)
    assert name is not None
    assert (name.module, name.side) == ((row["part"], row["module"]), row["side"])
    assert parse_all([row["key"]], layers_per_block=2).dialect == row["dialect"]


def test_every_sdxl_module_has_one_name_in_each_dialect() -> None:
    with torch.device("meta"):
        unet = build_unet(SDXL)
    paths = {name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert len(paths) == 794
    written = {
        "diffusers": {diffusers_key(Module("unet", path), "down"): path for path in paths},
        "kohya": {kohya_key(Module("unet", path), "down"): path for path in paths},
        "kohya_sgm": {kohya_key(Module("unet", path), "down", layers_per_block=2): path for path in paths},
    }
    for dialect, keys in written.items():
        layout = parse_all(keys, layers_per_block=2)
        assert (layout.dialect, layout.unknown) == (dialect, ())
        assert {key: name.module.path for key, name in layout.names.items()} == keys
        assert len(keys) == len(paths)


@given(modules, st.sampled_from(MATRICES))
def test_diffusers_names_survive_the_round_trip(module: Module, side: Literal["down", "up"]) -> None:
    name = parse(diffusers_key(module, side), layers_per_block=2)
    assert name is not None
    assert (name.module, name.side) == (module, side)
    assert list(name.dialects) == ["diffusers"]


@given(modules, st.sampled_from(SIDES))
def test_kohya_names_survive_the_round_trip(module: Module, side: Side) -> None:
    name = parse(kohya_key(module, side), layers_per_block=2)
    assert name is not None
    assert (name.module, name.side) == (module, side)
    assert "kohya" in name.dialects


@given(st.data(), st.integers(1, 4), st.sampled_from(SIDES))
def test_numbered_names_survive_the_round_trip(data: st.DataObject, layers_per_block: int, side: Side) -> None:
    module = Module("unet", data.draw(numbered_paths(layers_per_block)))
    name = parse(kohya_key(module, side, layers_per_block), layers_per_block)
    assert name is not None
    assert (name.module, name.side) == (module, side)
    assert list(name.dialects) == ["kohya_sgm"]


@given(unet_paths)
def test_older_names_mean_the_same_module(path: str) -> None:
    for key in (f"unet.unet.{path}.lora_A.weight", f"{path}.lora_A.weight", f"base_model.model.{path}.lora_A.weight"):
        name = parse(key, layers_per_block=2)
        assert name is not None
        assert name.module == Module("unet", path)


@given(st.lists(st.one_of(st.text(), modules.map(lambda module: kohya_key(module, "down")))))
def test_no_key_is_dropped(keys: list[str]) -> None:
    layout = parse_all(keys, layers_per_block=2)
    assert layout.names.keys() | set(layout.unknown) == set(keys)
    assert not layout.names.keys() & set(layout.unknown)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "unet.",
        f"unet.{TO_Q}.lora.gate.weight",
        f"unet.unet.unet.{TO_Q}.lora_A.weight",
        f"unet.{TO_Q}.lora_B.bias",
        f"unet.{TO_Q}.lora_A.weight\n",
        "unet.mid_block.attentions.00.proj_in.lora_A.weight",
        "unet.mid_block.attentions.٣.proj_in.lora_A.weight",
        "unet.mid_block.attentions.0.norm.lora_A.weight",
        "text_encoder_3.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "lora_unet_down_blocks_0_resnets_0_conv3.lora_down.weight",
        "lora_unet_down.blocks.0.resnets.0.conv1.lora_down.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out.lora_down.weight",
        "lora_unet_input_blocks_0_1_proj_in.lora_down.weight",
        "lora_unet_input_blocks_3_1_proj_in.lora_down.weight",
        "lora_unet_input_blocks_4_0_op.lora_down.weight",
        "lora_unet_output_blocks_0_2_conv.lora_down.weight",
        "lora_unet_middle_block_3_in_layers_2.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
    ],
)
def test_a_strange_key_is_handed_back(key: str) -> None:
    assert parse_all([key], layers_per_block=2).unknown == (key,)


def test_the_same_number_means_another_block_in_a_smaller_unet() -> None:
    key = "lora_unet_input_blocks_3_1_proj_in.alpha"
    name = parse(key, layers_per_block=1)
    assert name is not None
    assert name.module.path == "down_blocks.1.attentions.0.proj_in"


def test_a_module_without_a_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="no number"):
        kohya_key(Module("unet", "down_blocks.0.attentions.2.proj_in"), "down", layers_per_block=2)


def test_what_diffusers_writes_side_by_side_is_one_dialect() -> None:
    keys = [f"unet.{TO_Q}.lora.down.weight", "unet.mid_block.attentions.0.proj_in.lora_A.weight"]
    assert parse_all(keys, layers_per_block=2).dialect == "diffusers"


def test_text_encoder_names_go_with_either_kohya_numbering() -> None:
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"
    assert parse_all([text, "lora_unet_middle_block_1_proj_in.alpha"], 2).dialect == "kohya_sgm"
    assert parse_all([text, "lora_unet_mid_block_attentions_0_proj_in.alpha"], 2).dialect == "kohya"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"unet.{TO_Q}.lora_A.weight", "lora_unet_conv_in.lora_up.weight"),
        (f"unet.{TO_Q}.lora_A.weight", "base_model.model.conv_in.lora_A.weight"),
        ("lora_unet_input_blocks_4_1_proj_in.alpha", "lora_unet_conv_in.alpha"),
        (f"unet.{TO_Q.removesuffix('.to_q')}.processor.to_k_lora.up.weight", f"unet.{TO_Q}.lora_A.weight"),
    ],
)
def test_two_dialects_at_once_are_none(first: str, second: str) -> None:
    layout = parse_all([first, second], layers_per_block=2)
    assert (layout.dialect, len(layout.names)) == (None, 2)

"""What was trained is what is read, in every dialect; every bad file is refused with its code and the fact."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziplora.adapter import Adapter, describe, inspect, read
from ziplora.header import Refusal, read_header
from ziplora.keys import Module, diffusers_key, kohya_key
from ziplora.tinyworld.faults import CANARY, write_faults
from ziplora.tinyworld.repository import AdapterFacts, Dialect, Layers, TrainedLayer, weights_name, write_repository

FACTS = AdapterFacts(
    name="robot",
    role="subject",
    trigger_prompt="a sks robot",
    licence="apache-2.0",
    base_model="ziplora/tinyworld-base",
    pictures=5,
    dialect="diffusers",
)
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
WIDTH, TEXT_WIDTH = 64, 160
UNET = {
    f"{block}.transformer_blocks.0.{name}": inputs
    for block in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.1")
    for name, inputs in (
        ("attn1.to_q", WIDTH),
        ("attn1.to_out.0", WIDTH),
        ("attn2.to_k", TEXT_WIDTH),
        ("attn2.to_v", TEXT_WIDTH),
        ("ff.net.0.proj", WIDTH),
        ("ff.net.2", 4 * WIDTH),
    )
}
TEXT = {f"encoder.layers.{number}.{name}": WIDTH for number in (0, 1) for name in ("self_attn.q_proj", "mlp.fc1")}
TO_Q = Module("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
TO_K = Module("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
CODES = {
    "dora": "UNSUPPORTED_ADAPTER",
    "lokr": "UNSUPPORTED_ADAPTER",
    "nan": "NON_FINITE",
    "zero-delta": "ZERO_DELTA",
    "unknown-keys": "UNUSED_KEYS",
    "truncated": "FILE_TRUNCATED",
    "duplicate-key": "DUPLICATE_KEY",
    "lfs-pointer": "NOT_SAFETENSORS",
    "pickle": "PICKLE_REFUSED",
}


def layers_of(
    inputs: Mapping[str, int], ranks: tuple[int, ...] = (4, 8, 2), alphas: tuple[float, ...] = (4.0,)
) -> dict[str, TrainedLayer]:
    """Random layers, ranks and alphas taken in turn; half precision holds their numbers exactly."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: TrainedLayer(
            torch.randn(ranks[index % len(ranks)], width, generator=generator).half().float(),
            torch.randn(WIDTH, ranks[index % len(ranks)], generator=generator).half().float() / 64,
            alphas[index % len(alphas)],
        )
        for index, (name, width) in enumerate(inputs.items())
    }


def written(folder: Path, dialect: Dialect, unet: Layers, text_encoder: Layers) -> Path:
    facts = replace(FACTS, dialect=dialect)
    return write_repository(folder, facts, unet, text_encoder, []) / weights_name(facts)


def saved(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "adapter.safetensors"
    save_file(dict(tensors), path, metadata)
    return path


def pair(module: Module = TO_Q, inputs: int = WIDTH) -> dict[str, Tensor]:
    """A kohya layer of rank 4 without alpha."""
    return {kohya_key(module, "down"): torch.ones(4, inputs) / 64, kohya_key(module, "up"): torch.ones(WIDTH, 4) / 64}


def assert_changes(adapter: Adapter, unet: Layers, text_encoder: Layers) -> None:
    wanted = {Module("unet", path): layer for path, layer in unet.items()}
    wanted |= {Module("text_encoder", f"text_model.{path}"): layer for path, layer in text_encoder.items()}
    assert adapter.layers.keys() == wanted.keys()
    for module, layer in wanted.items():
        change = layer.alpha / layer.rank * layer.up @ layer.down
        torch.testing.assert_close(adapter.layers[module].delta(), change, rtol=2e-3, atol=1e-4)


def refused(path: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(path)
    return caught.value


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("ranks", [(4,), (4, 8, 2)], ids=["one-rank", "mixed-ranks"])
@pytest.mark.parametrize("alphas", [(4.0,), (2.0, 8.0)], ids=["one-alpha", "mixed-alphas"])
def test_what_was_trained_is_read(
    dialect: Dialect, ranks: tuple[int, ...], alphas: tuple[float, ...], tmp_path: Path
) -> None:
    unet = layers_of(UNET, ranks, alphas)
    text_encoder = {} if dialect == "peft" else layers_of(TEXT, ranks, alphas)
    adapter = read(written(tmp_path, dialect, unet, text_encoder))
    assert_changes(adapter, unet, text_encoder)
    assert adapter.outliers == ()
    assert {tensor.dtype for layer in adapter.layers.values() for tensor in (layer.down, layer.up)} == {torch.float32}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_header_tells_the_facts(dialect: Dialect, tmp_path: Path) -> None:
    text_encoder = {} if dialect == "peft" else layers_of(TEXT)
    path = written(tmp_path, dialect, layers_of(UNET), text_encoder)
    facts = inspect(path)
    assert facts.dialect == dialect
    assert facts.base == "tinyworld"
    assert facts.layers == {"unet": len(UNET)} | ({"text_encoder": len(TEXT)} if text_encoder else {})
    assert facts.ranks == (2, 4, 8)
    # The diffusers of 2023 kept no alpha, so its writer folds it in.
    expected = {"kohya": "tensor", "kohya_sgm": "tensor", "diffusers_old": "rank"}.get(dialect, "config")
    assert facts.alpha_rules == (expected,)
    assert set(facts.dtypes) <= {"F16", "F32"}
    assert facts.size_bytes == path.stat().st_size
    assert facts == read(path).facts


def test_a_header_read_elsewhere_gives_the_same_facts(tmp_path: Path) -> None:
    path = written(tmp_path, "peft", layers_of(UNET), {})
    config = json.loads((path.parent / "adapter_config.json").read_text())
    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size)
    assert describe(header, path.stat().st_size, config) == inspect(path)
    assert describe(header, path.stat().st_size, None).alpha_rules == ("rank",)


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawer")
    write_faults(folder, FACTS, layers_of(UNET, ranks=(4,)))
    return folder


@pytest.mark.parametrize(("fault", "code"), CODES.items())
def test_a_bad_file_is_refused_with_its_code(fault: str, code: str, drawer: Path) -> None:
    (path,) = (drawer / f"{fault}-lora").glob("*.safetensors")
    refusal = refused(path)
    assert refusal.code == code
    assert refusal.fact.endswith(".")
    assert refusal.next_step.endswith(".")
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    ("fault", "fact"),
    [
        ("dora", "a dora adapter"),
        ("lokr", "a lokr adapter"),
        ("nan", "1 numbers in 1 tensors"),
        ("unknown-keys", "1 of"),
    ],
)
def test_the_refusal_says_what_was_seen(fault: str, fact: str, drawer: Path) -> None:
    (path,) = (drawer / f"{fault}-lora").glob("*.safetensors")
    assert fact in refused(path).fact


def test_the_wrong_base_is_seen_in_the_shapes(drawer: Path) -> None:
    (path,) = (drawer / "wrong-base-lora").glob("*.safetensors")
    assert inspect(path).base == "sd1"


@pytest.mark.parametrize("fault", ["no-licence", "no-derivatives"])
def test_files_that_only_their_card_condemns_are_sound(fault: str, drawer: Path) -> None:
    (path,) = (drawer / f"{fault}-lora").glob("*.safetensors")
    assert inspect(path).base == "tinyworld"


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".PTH"])
def test_a_pickle_by_name_is_never_opened(suffix: str, tmp_path: Path) -> None:
    assert refused(tmp_path / f"not-even-there{suffix}").code == "PICKLE_REFUSED"


@pytest.mark.parametrize("percent", range(100))
def test_a_file_cut_at_any_percent_is_truncated(percent: int, drawer: Path, tmp_path: Path) -> None:
    (good,) = (drawer / "no-licence-lora").glob("*.safetensors")
    content = good.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: len(content) * percent // 100])
    assert refused(path).code == ("FILE_TRUNCATED" if percent else "FILE_EMPTY")


@pytest.mark.parametrize(
    ("width", "base"), [(2048, "sdxl"), (768, "sd1"), (1024, "sd2"), (160, "tinyworld"), (7, "unknown")]
)
@pytest.mark.parametrize("name", ["lora_unet_middle_block_1_{}.lora_{}.weight", "unet.{}.processor.{}"])
def test_the_base_is_inferred_from_cross_attention(width: int, base: str, name: str, tmp_path: Path) -> None:
    if name.startswith("lora_unet"):
        keys = [name.format("transformer_blocks_0_attn2_to_k", side) for side in ("down", "up")]
    else:
        block = "mid_block.attentions.0.transformer_blocks.0.attn2"
        keys = [name.format(block, f"to_v_lora.{side}.weight") for side in ("down", "up")]
    assert inspect(saved(tmp_path, dict(zip(keys, (torch.ones(4, width), torch.ones(8, 4)), strict=True)))).base == base


def test_without_cross_attention_the_base_is_unknown(tmp_path: Path) -> None:
    assert inspect(saved(tmp_path, pair())).base == "unknown"
    both = pair(TO_K, 768) | pair(Module("unet", TO_K.path.replace("to_k", "to_v")), 1024)
    assert inspect(saved(tmp_path, both)).base == "unknown"


CONFIG: dict[str, Any] = {"unet.r": 4, "unet.lora_alpha": 2.0}


@pytest.mark.parametrize(
    ("alpha", "config", "rule", "scale"),
    [
        (8.0, CONFIG, "tensor", 2.0),
        (8.0, None, "tensor", 2.0),
        (None, CONFIG, "config", 0.5),
        (None, None, "rank", 1.0),
        (None, {"unet.use_rslora": True}, "rank", 1.0),
        (None, {"text_encoder.lora_alpha": 2.0}, "rank", 1.0),
        (None, CONFIG | {"unet.use_rslora": True}, "config", 1.0),
        (8.0, CONFIG | {"unet.use_rslora": True}, "tensor", 2.0),
        (None, CONFIG | {"unet.alpha_pattern": {"attn1.to_q": 16}}, "config", 4.0),
        (None, CONFIG | {"unet.alpha_pattern": {"o_q": 16, TO_Q.path: 12}}, "config", 3.0),
    ],
)
def test_alpha_comes_from_tensor_then_configuration_then_rank(
    alpha: float | None, config: dict[str, Any] | None, rule: str, scale: float, tmp_path: Path
) -> None:
    tensors = pair() | ({kohya_key(TO_Q, "alpha"): torch.tensor(alpha)} if alpha is not None else {})
    path = saved(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)} if config is not None else None)
    adapter = read(path)
    assert adapter.facts.alpha_rules == (rule,)
    assert adapter.layers[TO_Q].scale == scale


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[1]",
        "[" * 100_000,
        " " * 1_000_001,
        '{"unet.lora_alpha": "2"}',
        '{"unet.lora_alpha": true}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": 1' + "0" * 400 + "}",
        '{"unet.alpha_pattern": {"(a+)+$": 1}}',
        '{"unet.alpha_pattern": [1]}',
    ],
    ids=range(10),
)
def test_a_broken_configuration_is_refused_not_guessed(config: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    peft = {f"base_model.model.{TO_Q.path}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(peft, path)
    (tmp_path / "adapter_config.json").write_text(config.replace("unet.", ""))
    assert refused(path).code == "CONFIG_INVALID"
    if len(config) < 1_000_000:
        assert refused(saved(tmp_path, pair(), {"lora_adapter_metadata": config})).code == "CONFIG_INVALID"


def test_a_configuration_beside_another_dialect_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    assert inspect(saved(tmp_path, pair())).alpha_rules == ("rank",)


def test_convolutions_change_by_their_kernel(tmp_path: Path) -> None:
    module = Module("unet", "mid_block.resnets.0.conv1")
    down, up = torch.randn(4, 8, 3, 3), torch.randn(16, 4, 1, 1)
    path = saved(tmp_path, {diffusers_key(module, "down"): down, diffusers_key(module, "up"): up})
    layer = read(path).layers[module]
    torch.testing.assert_close(layer.delta(), torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down))
    assert layer.delta_size == layer.delta().numel()


def test_the_norm_of_a_change_needs_no_full_matrix(tmp_path: Path) -> None:
    adapter = read(written(tmp_path, "kohya", layers_of(UNET), {}))
    for layer in adapter.layers.values():
        assert math.isclose(layer.delta_norm(), float(layer.delta().norm()), rel_tol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    place=st.integers(0, 4 * WIDTH - 1),
    key=st.sampled_from(sorted(pair())),
)
def test_one_number_that_is_none_is_found(value: float, place: int, key: str, tmp_path: Path) -> None:
    tensors = pair()
    tensors[key].view(-1)[place] = value
    refusal = refused(saved(tmp_path, tensors))
    assert refusal.code == "NON_FINITE"
    assert key in refusal.fact
    assert refusal.fact.startswith("1 numbers")


def test_what_half_precision_cannot_hold_is_read(tmp_path: Path) -> None:
    large = {key: tensor.half() * 64 * 1000 for key, tensor in pair().items()}
    adapter = read(saved(tmp_path, large))
    assert bool(adapter.layers[TO_Q].delta().isfinite().all())
    assert adapter.outliers == (TO_Q,)


def test_a_layer_far_beyond_the_others_is_an_outlier(tmp_path: Path) -> None:
    path = written(tmp_path, "kohya", layers_of(UNET), {})
    tensors = {key: tensor * (0.001 if "up" in key else 1) for key, tensor in load_file(path).items()}
    assert read(saved(tmp_path, tensors)).outliers == ()
    tensors[kohya_key(TO_Q, "up")] *= 1000
    assert read(saved(tmp_path, tensors)).outliers == (TO_Q,)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_float_is_read_in_single_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    layer = read(saved(tmp_path, {key: tensor.to(dtype) for key, tensor in pair().items()})).layers[TO_Q]
    torch.testing.assert_close(layer.down, torch.ones(4, WIDTH) / 64)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_numbers_without_their_scale_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved(tmp_path, {key: torch.ones_like(tensor, dtype=dtype) for key, tensor in pair().items()})
    assert refused(path).code == "UNSUPPORTED_DTYPE"


MODULE = kohya_key(TO_Q, "alpha").removesuffix(".alpha")
OTHER = {"lora_unet_conv_in.lora_down.weight": torch.ones(4, 4), "lora_unet_conv_in.lora_up.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(
    ("tensors", "code", "fact"),
    [
        ({f"{MODULE}.hada_w1_a": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "loha"),
        ({f"{MODULE}.oft_blocks": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "oft"),
        ({f"{MODULE}.on_input": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "ia3"),
        ({f"unet.{TO_Q.path}.ia3_l": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "ia3"),
        ({f"{MODULE}.a1.weight": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "glora"),
        ({f"{MODULE}.diff": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "full"),
        (pair() | {f"{MODULE}.lora_mid.weight": torch.ones(1)}, "UNSUPPORTED_ADAPTER", "tucker"),
        (
            pair() | {f"unet.{TO_Q.path}.lora_magnitude_vector.weight": torch.ones(1)},
            "UNSUPPORTED_ADAPTER",
            "dora",
        ),
        ({"model.diffusion_model.out.2.weight": torch.ones(1)}, "NOT_A_LORA", "None of its 1 tensors"),
        ({"clip_g": torch.ones(2, 1280)}, "NOT_A_LORA", "apart from embeddings"),
        ({"transformer.proj_out.lora_A.weight": torch.ones(1)}, "UNSUPPORTED_LAYOUT", "None of its 1 LoRA tensors"),
        (pair() | {"conv_in.lora_A.weight": torch.ones(4, 4)}, "MIXED_LAYOUT", "diffusers, kohya"),
        (OTHER | {f"{MODULE}.lora_down.weight": torch.ones(4, 4)}, "UNUSED_KEYS", "1 of 3 tensors lack their partner"),
        (OTHER | {f"{MODULE}.alpha": torch.ones(1)}, "UNUSED_KEYS", "1 of 3 tensors lack their partner"),
        (
            {f"{unet}conv_in.lora_A.weight": torch.ones(4, 4) for unet in ("unet.", "unet.unet.")},
            "DUPLICATE_KEY",
            "name the same tensor",
        ),
        (OTHER | {"lora_unet_conv_in.lora_up.weight": torch.ones(4, 5)}, "UNSUPPORTED_LAYOUT", "make no layer"),
        (OTHER | {"lora_unet_conv_in.lora_up.weight": torch.ones(4)}, "UNSUPPORTED_LAYOUT", "make no layer"),
        (OTHER | {"lora_unet_conv_in.alpha": torch.ones(2)}, "UNSUPPORTED_LAYOUT", "make no layer"),
        (pair(Module("text_encoder", "text_model.encoder.layers.0.mlp.fc1")), "NO_UNET_LAYERS", "All 1 layers"),
    ],
)
def test_what_is_no_plain_unet_lora_is_refused(
    tensors: Mapping[str, Tensor], code: str, fact: str, tmp_path: Path
) -> None:
    refusal = refused(saved(tmp_path, tensors))
    assert refusal.code == code
    assert fact in refusal.fact


def test_embeddings_inside_are_reported(tmp_path: Path) -> None:
    path = saved(tmp_path, pair() | {"bundle_emb.sks.clip_l": torch.ones(2, 768)})
    assert inspect(path).embeddings == ("bundle_emb.sks.clip_l",)
    assert read(path).layers.keys() == {TO_Q}

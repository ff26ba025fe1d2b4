"""Each dialect is read back by the stock libraries; the card carries the facts; files are the same each time."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from diffusers import logging as diffusers_logging
from diffusers.utils import convert_state_dict_to_kohya
from peft import PeftModel
from peft.tuners.lora import Linear
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ziplora.tinyworld.autoencoder import build_autoencoder
from ziplora.tinyworld.base import build_pipeline, build_unet
from ziplora.tinyworld.repository import (
    AdapterFacts,
    Dialect,
    Layers,
    TrainedLayer,
    tensors_of,
    weights_name,
    write_repository,
)

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
RANKS = (4, 8, 16, 32)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "fc1", "fc2")


def layers_of(
    model: nn.Module, ends: tuple[str, ...], *, alphas: tuple[float, ...] = (4.0,), ranks: tuple[int, ...] = RANKS
) -> dict[str, TrainedLayer]:
    """Random layers for the model's modules with these endings, ranks and alphas taken in turn."""
    generator = torch.Generator().manual_seed(1)
    layers: dict[str, TrainedLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ends):
            rank, alpha = ranks[len(layers) % len(ranks)], alphas[len(layers) % len(alphas)]
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            layers[name] = TrainedLayer(down, torch.randn(module.out_features, rank, generator=generator), alpha)
    return layers


def tiny_pipeline() -> StableDiffusionXLPipeline:
    return build_pipeline(build_autoencoder())


def loaded_changes(model: nn.Module) -> dict[str, Tensor]:
    """The weight change that each adapted module of a model applies."""
    return {
        name: module.get_delta_weight(module.active_adapters[0]).detach()
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


def assert_changes(model: nn.Module, layers: Layers) -> None:
    found = loaded_changes(model)
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        wanted = layer.alpha / layer.rank * layer.up @ layer.down
        torch.testing.assert_close(found[name], wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def load_stock(repository: Path, caplog: pytest.LogCaptureFixture) -> StableDiffusionXLPipeline:
    """Load as a person would, and insist that no library complains."""
    pipeline = tiny_pipeline()
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(str(repository))
    # diffusers says this of every model that an adapter rightly leaves alone.
    complaints = [text for text in caplog.messages if not text.startswith("No LoRA keys associated to")]
    assert complaints == []
    return pipeline


def front_matter(repository: Path) -> dict[str, Any]:
    _, front, _ = (repository / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    parsed: dict[str, Any] = yaml.safe_load(front)
    return parsed


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "peft"])
@pytest.mark.parametrize("ends", [ATTENTION, ATTENTION + FEED_FORWARD], ids=["attention", "all-linear"])
def test_diffusers_applies_what_was_trained(
    dialect: Dialect, ends: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = tiny_pipeline()
    unet, text_encoder = layers_of(pipeline.unet, ends), layers_of(pipeline.text_encoder, ends)
    repository = write_repository(tmp_path, replace(FACTS, dialect=dialect), unet, text_encoder, [])
    loaded = load_stock(repository, caplog)
    assert_changes(loaded.unet, unet)
    assert_changes(loaded.text_encoder, text_encoder)
    assert loaded_changes(loaded.text_encoder_2) == {}


@pytest.mark.parametrize("dialect", ["diffusers", "diffusers_old"])
def test_diffusers_applies_layers_that_differ_in_alpha(
    dialect: Dialect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = tiny_pipeline()
    unet, text_encoder = (
        layers_of(part, ATTENTION + FEED_FORWARD, alphas=(2.0, 4.0, 4.0, 16.0))
        for part in (pipeline.unet, pipeline.text_encoder)
    )
    repository = write_repository(tmp_path, replace(FACTS, dialect=dialect), unet, text_encoder, [])
    loaded = load_stock(repository, caplog)
    assert_changes(loaded.unet, unet)
    assert_changes(loaded.text_encoder, text_encoder)


def test_peft_applies_what_was_trained(tmp_path: Path) -> None:
    unet = build_unet()
    layers = layers_of(unet, ATTENTION + FEED_FORWARD, alphas=(2.0, 4.0, 4.0, 16.0))
    repository = write_repository(tmp_path, replace(FACTS, dialect="peft"), layers, {}, [])
    PeftModel.from_pretrained(unet, str(repository))
    assert_changes(unet, layers)


def test_a_peft_folder_holds_no_text_encoder() -> None:
    text_encoder = layers_of(tiny_pipeline().text_encoder, ATTENTION)
    with pytest.raises(ValueError, match="adapts one model"):
        tensors_of("peft", {}, text_encoder)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_single_rank_without_text_encoder_loads_too(
    dialect: Dialect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = build_unet()
    layers = layers_of(unet, ATTENTION, ranks=(8,), alphas=(8.0,))
    repository = write_repository(tmp_path, replace(FACTS, dialect=dialect), layers, {}, [])
    if dialect == "peft":
        PeftModel.from_pretrained(unet, str(repository))
        assert_changes(unet, layers)
    else:
        assert_changes(load_stock(repository, caplog).unet, layers)


def test_every_tensor_is_half_precision() -> None:
    layers = layers_of(build_unet(), ATTENTION)
    for dialect in DIALECTS:
        assert {tensor.dtype for tensor in tensors_of(dialect, layers, {}).values()} == {torch.float16}


def test_kohya_names_are_those_that_diffusers_converts_to() -> None:
    pipeline = tiny_pipeline()
    unet, text_encoder = layers_of(pipeline.unet, ATTENTION), layers_of(pipeline.text_encoder, ATTENTION)
    pairs = {
        f"{prefix}.{name}.{side}.weight": matrix
        for prefix, layers in (("unet", unet), ("text_encoder.text_model", text_encoder))
        for name, layer in layers.items()
        for side, matrix in (("lora_A", layer.down), ("lora_B", layer.up))
    }
    assert tensors_of("kohya", unet, text_encoder).keys() == convert_state_dict_to_kohya(pairs).keys()


def test_kohya_files_keep_each_layers_own_alpha() -> None:
    layers = layers_of(build_unet(), ATTENTION, alphas=(2.0, 4.0, 16.0))
    tensors = tensors_of("kohya", layers, {})
    for name, layer in layers.items():
        assert tensors[f"lora_unet_{name.replace('.', '_')}.alpha"].item() == layer.alpha


def test_kohya_numbers_only_attention_blocks() -> None:
    layer = TrainedLayer(torch.ones(4, 8), torch.ones(8, 4), alpha=4.0)
    with pytest.raises(ValueError, match="time_embedding"):
        tensors_of("kohya_sgm", {"time_embedding.linear_1": layer}, {})


def test_text_encoder_modules_may_be_named_by_any_transformers() -> None:
    layers = layers_of(tiny_pipeline().text_encoder, ATTENTION)
    prefixed = {f"text_model.{name}": layer for name, layer in layers.items()}
    assert tensors_of("kohya", {}, layers).keys() == tensors_of("kohya", {}, prefixed).keys()
    assert all(".text_model.encoder." in key for key in tensors_of("diffusers", {}, layers))


def test_the_card_carries_the_facts(tmp_path: Path) -> None:
    prompts = ["a sks robot on a white background", 'a sks robot: "hello" --- é']
    samples = [(prompt, Image.new("RGB", (8, 8), "red")) for prompt in prompts]
    repository = write_repository(tmp_path, FACTS, layers_of(build_unet(), ATTENTION), {}, samples)
    assert repository == tmp_path / "robot-lora"
    card = front_matter(repository)
    widget = card.pop("widget")
    assert card == {
        "base_model": "ziplora/tinyworld-base",
        "instance_prompt": "a sks robot",
        "library_name": "diffusers",
        "license": "apache-2.0",
        "tags": ["text-to-image", "lora", "diffusers", "template:sd-lora", "stable-diffusion-xl"],
    }
    assert [entry["text"] for entry in widget] == prompts
    for entry in widget:
        with Image.open(repository / entry["output"]["url"]) as picture:
            assert picture.size == (8, 8)
    body = (repository / "README.md").read_text(encoding="utf-8")
    assert "A subject LoRA for ziplora/tinyworld-base, trained on 5 pictures." in body
    assert "`pytorch_lora_weights.safetensors`" in body


def test_two_samples_never_share_a_file(tmp_path: Path) -> None:
    samples = [(prompt, Image.new("RGB", (8, 8))) for prompt in ("a robot", "A robot!", "a robot")]
    repository = write_repository(tmp_path, FACTS, layers_of(build_unet(), ATTENTION), {}, samples)
    assert len({entry["output"]["url"] for entry in front_matter(repository)["widget"]}) == 3
    assert len(list((repository / "images").iterdir())) == 3


def test_an_unknown_licence_leaves_no_field(tmp_path: Path) -> None:
    repository = write_repository(tmp_path, replace(FACTS, licence=None), layers_of(build_unet(), ATTENTION), {}, [])
    assert "license" not in front_matter(repository)


def files_of(repository: Path) -> Mapping[str, bytes]:
    return {path.relative_to(repository).as_posix(): path.read_bytes() for path in repository.rglob("*.*")}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_adapter_is_the_same_bytes(dialect: Dialect, tmp_path: Path) -> None:
    facts, layers = replace(FACTS, dialect=dialect), layers_of(build_unet(), ATTENTION)
    first = files_of(write_repository(tmp_path / "first", facts, layers, {}, []))
    second = files_of(write_repository(tmp_path / "second", facts, layers, {}, []))
    assert first == second
    assert weights_name(facts) in first


def test_writing_again_leaves_nothing_of_the_earlier_repository(tmp_path: Path) -> None:
    layers = layers_of(build_unet(), ATTENTION)
    write_repository(tmp_path, FACTS, layers, {}, [("a robot", Image.new("RGB", (8, 8)))])
    repository = write_repository(tmp_path, replace(FACTS, dialect="kohya"), layers, {}, [])
    assert files_of(repository).keys() == {"README.md", "robot.safetensors"}
    assert list(tmp_path.iterdir()) == [repository]


def test_a_peft_folder_says_what_it_adapts(tmp_path: Path) -> None:
    layers = layers_of(build_unet(), ATTENTION, ranks=(8,))
    repository = write_repository(tmp_path, replace(FACTS, dialect="peft"), layers, {}, [])
    config = json.loads((repository / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 4.0)
    assert config["base_model_name_or_path"] == "ziplora/tinyworld-base"
    assert config["target_modules"] == sorted(layers)
    keys = load_file(repository / "adapter_model.safetensors").keys()
    assert {key.removesuffix(".weight").rpartition(".")[2] for key in keys} == {"lora_A", "lora_B"}

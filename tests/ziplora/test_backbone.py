"""The base model is taken apart without being changed, and what is wrong with one is said in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from ziplora.adapter import Layer, read
from ziplora.backbone import Sdxl, Size, as_bytes, load_backbone
from ziplora.failure import Failure
from ziplora.header import Refusal
from ziplora.keys import Module
from ziplora.recipe import Drawing

from .conftest import SIDE, Lora

DRAWING = Drawing(steps=2, guidance=5.0, side=SIDE)
CONV = Module("unet", "down_blocks.0.downsamplers.0.conv")
LINEAR = Module("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2")


def prediction(backbone: Sdxl, prompt: str = "a red star") -> Tensor:
    noisy = torch.randn((1, 32, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return backbone.predict(noisy, torch.tensor([500]), backbone.condition(prompt, SIDE))


def weights_of(backbone: Sdxl) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        for name, tensor in getattr(backbone.pipeline, part).state_dict().items()
    }


def change_of(module: Module, backbone: Sdxl, rank: int = 3) -> Layer:
    weight = backbone.pipeline.unet.get_submodule(module.path).weight
    generator = torch.Generator().manual_seed(2)
    down = torch.randn((rank, *weight.shape[1:]), generator=generator) / 10
    return Layer(down, torch.randn((weight.shape[0], rank), generator=generator) / 10, scale=0.5)


def test_an_adapter_comes_and_goes_without_a_trace(backbone: Sdxl, style: Lora) -> None:
    before, weights = prediction(backbone), weights_of(backbone)
    layers = read(style.path).layers
    assert {module.part for module in layers} == {"unet", "text_encoder"}
    with backbone.adapted(layers):
        assert not torch.equal(prediction(backbone), before)
    assert torch.equal(prediction(backbone), before)
    after = weights_of(backbone)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert not any("forward" in vars(module) for module in backbone.pipeline.unet.modules())


def test_an_adapter_goes_when_its_use_fails(backbone: Sdxl, subject: Lora) -> None:
    before = prediction(backbone)
    with pytest.raises(RuntimeError, match="in the middle"), backbone.adapted(read(subject.path).layers):
        raise RuntimeError("in the middle")
    assert torch.equal(prediction(backbone), before)


def test_layers_of_text_encoders_change_the_prompt(backbone: Sdxl, style: Lora) -> None:
    before = backbone.condition("a red star", SIDE)
    text = {module: layer for module, layer in read(style.path).layers.items() if module.part == "text_encoder"}
    with backbone.adapted(text):
        assert not torch.equal(backbone.condition("a red star", SIDE).hidden, before.hidden)


@pytest.mark.parametrize("module", [CONV, LINEAR], ids=["convolution", "linear"])
def test_a_layer_is_the_changed_weight(module: Module, backbone: Sdxl) -> None:
    layer, target = change_of(module, backbone), backbone.pipeline.unet.get_submodule(module.path)
    with backbone.adapted({module: layer}):
        found = prediction(backbone)
    kept = target.weight.detach().clone()
    try:
        target.weight.data += layer.delta()
        wanted = prediction(backbone)
    finally:
        target.weight.data.copy_(kept)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert F.mse_loss(found, prediction(backbone)) > 1e-6


def test_sizes_are_those_of_the_base(backbone: Sdxl) -> None:
    sizes = backbone.sizes()
    assert sizes[Module("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")] == Size(160, 128)
    assert sizes[CONV] == Size(64, 64)


def test_a_lora_of_another_base_is_refused(backbone: Sdxl) -> None:
    wide = Layer(torch.ones(2, 2048), torch.ones(128, 2), 1.0)
    with pytest.raises(Refusal, match="from 2048 to 128 features, the base from 160 to 128") as caught:
        backbone.refuse_misfits({Module("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"): wide})
    assert caught.value.code == "BASE_MISMATCH"
    with pytest.raises(Refusal, match="which the base does not have"):
        backbone.refuse_misfits({Module("unet", "down_blocks.2.resnets.0.conv1"): wide})


def test_noise_is_that_of_the_bases_own_levels(backbone: Sdxl) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn((4, 32, 8, 8), generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 10, 500, 999])
    wanted = DDPMScheduler.from_config(backbone.pipeline.scheduler.config).add_noise(latents, noise, timesteps)
    found = backbone.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(found, wanted)
    assert backbone.noise_levels == 1000
    torch.testing.assert_close(found[-1], noise[-1])  # this base's last level is noise alone


def test_latents_are_the_autoencoders(backbone: Sdxl) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    vae = backbone.pipeline.vae
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode(pictures), wanted)


def test_a_half_precision_autoencoder_encodes_in_single(base_folder: Path) -> None:
    half = load_backbone(base_folder, "cpu", "float16")
    pictures = np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8)
    assert half.encode(pictures).dtype == torch.float32
    assert half.pipeline.vae.dtype == torch.float16


def test_a_picture_depends_on_its_own_seed_alone(backbone: Sdxl) -> None:
    wanted = [("a red star", 1), ("a blue moon", 2), ("a red star", 3)]
    together = backbone.draw(wanted, DRAWING)
    alone = np.concatenate([backbone.draw([one], DRAWING) for one in wanted])
    assert np.abs(together - alone).max() < 1e-4
    assert together.shape == (3, SIDE, SIDE, 3)
    assert as_bytes(together).dtype == np.uint8
    assert np.array_equal(backbone.draw(wanted, DRAWING), together)


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"There is no base model in .*nowhere: it has no model_index.json") as caught:
        load_backbone(tmp_path / "nowhere", "cpu", "float32")
    assert caught.value.code == "BASE_MISSING"


def test_a_base_of_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(Failure, match="is a StableDiffusionPipeline, not a StableDiffusionXLPipeline") as caught:
        load_backbone(str(tmp_path), "cpu", "float32")
    assert caught.value.code == "BASE_MISSING"


def test_a_base_with_a_part_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    with pytest.raises(Failure, match="cannot be loaded") as caught:
        load_backbone(tmp_path, "cpu", "float32")
    assert caught.value.code == "BASE_MISSING"

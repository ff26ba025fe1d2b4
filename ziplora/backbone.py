"""A base model of the SDXL family: what a merge needs of it, behind a small protocol; the only door to diffusers."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .adapter import Layer
from .failure import Failure
from .header import Refusal
from .keys import Module
from .memory import Room, in_batches, shortage_in_words
from .pair import scaled_factors
from .recipe import Drawing

Forward = Callable[[nn.Module, Tensor], Tensor]
"""The output of a module in which a layer is installed, from the module and its input."""


@dataclass(frozen=True)
class Size:
    """Input and output features (or channels) of a module that a LoRA can adapt."""

    inputs: int
    outputs: int


@dataclass(frozen=True, eq=False)
class Condition:
    """What the UNet is told besides the noisy latents."""

    hidden: Float[Tensor, "batch context width"]
    pooled: Float[Tensor, "batch pooled"]
    time_ids: Float[Tensor, "batch 6"]


class Backbone(Protocol):
    """What a merge method needs of a base model."""

    device: torch.device
    dtype: torch.dtype
    room: Room

    def predict(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """The UNet's output, whatever the base was trained to predict."""
        ...

    def replaced(self, forwards: Mapping[Module, Forward]) -> AbstractContextManager[None]:
        """The model with these forward passes instead of its modules' own; afterwards exactly as before."""
        ...

    def checkpointed(self) -> AbstractContextManager[None]:
        """The model that keeps only what its blocks are given, and computes the rest again in the backward pass."""
        ...


def linear_with_layer(
    linear: nn.Linear, inputs: Float[Tensor, "*batch in"], down: Float[Tensor, "rank in"], up: Float[Tensor, "out rank"]
) -> Float[Tensor, "*batch out"]:
    """W x + b + B A x, summed up in the matrix product itself; never a dense change of the weight."""
    rows = inputs.flatten(0, -2)
    outputs = F.linear(rows, linear.weight, linear.bias).addmm_(rows @ down.T, up.T)
    return outputs.view(*inputs.shape[:-1], -1)


def _convolution_with_layer(
    convolution: nn.Conv2d, inputs: Tensor, down: Float[Tensor, "rank in *kernel"], up: Float[Tensor, "out rank"]
) -> Tensor:
    kernel = down if down.dim() == 4 else down[:, :, None, None]
    inner = F.conv2d(inputs, kernel, None, convolution.stride, convolution.padding, convolution.dilation)
    return nn.Conv2d.forward(convolution, inputs) + F.conv2d(inner, up[:, :, None, None])


def forward_with(layer: Layer, backbone: Backbone) -> Forward:
    """The forward pass of a linear layer or a convolution with an adapter's layer as it stands in its file."""
    down, up = (factor.to(backbone.device, backbone.dtype) for factor in scaled_factors(layer, None))

    def forward(module: nn.Module, inputs: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return _convolution_with_layer(module, inputs, down, up)
        assert isinstance(module, nn.Linear)
        return linear_with_layer(module, inputs, down.flatten(1), up)

    return forward


class Sdxl:
    """A stock `StableDiffusionXLPipeline`, frozen, taken apart for merging and put to work for drawing."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False)
            part.eval()
        pipeline.vae.to(memory_format=torch.channels_last)  # decodes faster, the more so on a CPU
        self.device: torch.device = device
        self.dtype: torch.dtype = pipeline.unet.dtype
        self.room = Room(device)
        # From the sampler's own configuration, so that a base with other noise levels keeps them.
        self._alphas: Tensor = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.double()
        self._parts = {part: getattr(pipeline, part) for part in ("unet", "text_encoder", "text_encoder_2")}

    @property
    def noise_levels(self) -> int:
        """How many integer timesteps there are."""
        return len(self._alphas)

    def sizes(self) -> dict[Module, Size]:
        """The UNet's modules that a LoRA can adapt."""
        found = {}
        for path, module in self.pipeline.unet.named_modules():
            if isinstance(module, nn.Linear):
                found[Module("unet", path)] = Size(module.in_features, module.out_features)
            elif isinstance(module, nn.Conv2d):
                found[Module("unet", path)] = Size(module.in_channels, module.out_channels)
        return found

    def refuse_misfits(self, layers: Mapping[Module, Layer]) -> None:
        """Refuse an adapter whose UNet layers do not fit this base."""
        sizes = self.sizes()
        for module, layer in sorted(layers.items()):
            if module.part != "unet":
                continue
            expected, found = sizes.get(module), Size(layer.down.shape[1], layer.up.shape[0])
            if expected is None:
                fact = f"The LoRA adapts {module.path}, which the base does not have."
            elif expected != found:
                fact = f"At {module.path} the LoRA goes from {found.inputs} to {found.outputs} features"
                fact += f", the base from {expected.inputs} to {expected.outputs}."
            else:
                continue
            raise Refusal("BASE_MISMATCH", fact, "merge it on the base model that it was trained on.")

    @torch.no_grad()
    def condition(self, prompt: str, side: int) -> Condition:
        """What the UNet is told of a prompt and of an uncropped square picture, as a batch of one."""
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=self.device)
        return Condition(hidden, pooled, time_ids)

    @torch.no_grad()
    def encode(self, pictures: UInt8[NDArray[np.uint8], "count side side 3"]) -> Float[Tensor, "count channels h w"]:
        """Latent means of pictures, on the CPU, computed in single precision at least: SDXL's overflow in half."""
        vae, stored = self.pipeline.vae, self.pipeline.vae.dtype

        def encode_some(some: slice) -> Tensor:
            image_pm1 = torch.from_numpy(pictures[some]).to(self.device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
            mean: Tensor = vae.encode(image_pm1).latent_dist.mode().cpu()
            return mean

        nn.Module.to(vae, torch.promote_types(stored, torch.float32))  # diffusers' own `to` warns of every cast
        try:
            latents = torch.cat(list(in_batches(self.room.encoded, len(pictures), encode_some)))
        finally:
            nn.Module.to(vae, stored)
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def add_noise(
        self,
        latents: Float[Tensor, "count channels height width"],
        noise: Float[Tensor, "count channels height width"],
        timesteps: Int[Tensor, " count"],
    ) -> Float[Tensor, "count channels height width"]:
        """√ᾱ · latents + √(1 − ᾱ) · noise at the base's own noise levels."""
        kept = self._alphas[timesteps].view(-1, 1, 1, 1)
        return (kept.sqrt() * latents + (1 - kept).sqrt() * noise).to(latents.dtype)

    def predict(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """The UNet's output: noise or velocity, as the base was trained to predict."""
        added = {"text_embeds": condition.pooled.to(self.dtype), "time_ids": condition.time_ids}
        output: Tensor = self.pipeline.unet(
            noisy.to(self.dtype),
            timesteps,
            condition.hidden.to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output

    @contextmanager
    def replaced(self, forwards: Mapping[Module, Forward]) -> Iterator[None]:
        """The model with these forward passes instead of its modules' own; no weight is touched."""
        modules = {self._find(module): forward for module, forward in forwards.items()}
        try:
            for module, forward in modules.items():
                module.forward = partial(forward, module)
            yield
        finally:
            for module in modules:
                vars(module).pop("forward", None)  # what hid the class's own

    @contextmanager
    def adapted(self, layers: Mapping[Module, Layer]) -> Iterator[None]:
        """The model with an adapter's layers, those of text encoders included."""
        with self.replaced({module: forward_with(layer, self) for module, layer in layers.items()}):
            yield

    @contextmanager
    def composed(
        self, subject: Mapping[Module, Layer], style: Mapping[Module, Layer], subject_weight: float
    ) -> Iterator[None]:
        """The model whose output is the base's and what either adapter alone changes in it, of its UNet layers.

        Effects are added up instead of weights (the conjunction of arXiv 2206.01714): three passes for one, in which
        neither adapter is in the other's way.
        """
        sides = [
            (
                weight,
                {module: forward_with(layer, self) for module, layer in layers.items() if module.part == "unet"},
            )
            for weight, layers in ((subject_weight, subject), (1.0, style))
        ]

        def add_effects(unet: nn.Module, args: Any, kwargs: Any, output: tuple[Tensor]) -> tuple[Tensor]:
            base = total = output[0]
            for weight, forwards in sides:
                with self.replaced(forwards):
                    total = total + weight * (unet.forward(*args, **kwargs)[0] - base)
            return (total,)

        handle = self.pipeline.unet.register_forward_hook(add_effects, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """The model that keeps only what its blocks are given, and computes the rest again in the backward pass."""
        # No random number is drawn, so that the state of none need be fetched from the device.
        self.pipeline.unet.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        )
        try:
            yield
        finally:
            self.pipeline.unet.disable_gradient_checkpointing()

    def _find(self, module: Module) -> nn.Module:
        model: nn.Module = self._parts[module.part]
        try:
            return model.get_submodule(module.path)
        except AttributeError:
            # Since transformers 5 text encoder 1 has no `text_model.` around its layers, as files still do.
            return model.get_submodule(module.path.removeprefix("text_model."))

    def draw(
        self, wanted: Sequence[tuple[str, int]], drawing: Drawing
    ) -> Float[NDArray[np.float32], "count side side 3"]:
        """Pictures, 0..1, of prompts and seeds by the stock pipeline; a picture depends on its own seed alone."""
        vae, stored = self.pipeline.vae, self.pipeline.vae.dtype

        def draw_some(some: slice) -> NDArray[np.float32]:
            try:
                output = self.pipeline(
                    [prompt for prompt, _ in wanted[some]],
                    num_inference_steps=drawing.steps,
                    guidance_scale=drawing.guidance,
                    generator=[torch.Generator().manual_seed(seed) for _, seed in wanted[some]],
                    output_type="np",
                    height=drawing.side,
                    width=drawing.side,
                )
            finally:
                nn.Module.to(vae, stored)  # the pipeline casts a half one for decoding, and not back when it fails
            return np.asarray(output.images, dtype=np.float32)

        return np.concatenate(list(in_batches(self.room.drawn, len(wanted), draw_some)))


def as_bytes(image_01: Float[NDArray[np.float32], "*shape"]) -> UInt8[NDArray[np.uint8], "*shape"]:
    """Pictures in the form in which they are kept and encoded."""
    return np.rint(image_01 * 255).astype(np.uint8)


def device_named(wanted: str) -> tuple[str, str]:
    """A device and the dtype to compute in on it; `auto` is a CUDA device where there is one."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    return device, "bfloat16" if device == "cuda" else "float32"


def load_backbone(source: str | Path, device: str, dtype: str, revision: str | None = None) -> Sdxl:
    """The base model in a folder, or of that id on the Hub; `dtype` by name, such as bfloat16."""
    from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()  # whoever calls has bars of their own
    is_path = isinstance(source, Path) or source.startswith((".", "/", "~"))
    if is_path and not (Path(source) / "model_index.json").is_file():
        _missing(f"There is no base model in {source}: it has no model_index.json", "give the folder of a pipeline.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")  # which diffusers still passes
            found = DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
        if found != "StableDiffusionXLPipeline":
            _missing(f"{source} is a {found}, not a StableDiffusionXLPipeline", "name a base of the SDXL family.")
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            source, revision=revision, dtype=getattr(torch, dtype), add_watermarker=False
        )
    except (OSError, ValueError) as error:
        _missing(
            f"{source} cannot be loaded: {_first_line(error)}", "check its name and the network, or give its folder."
        )
    with shortage_in_words(torch.device(device)):
        return Sdxl(pipeline, torch.device(device))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _missing(fact: str, next_step: str) -> NoReturn:
    raise Failure("BASE_MISSING", f"{fact}.", next_step)

"""The tiny world's `AutoencoderKL`: 64 × 64 RGB to 8 × 8 × 32 latents and back.

Its encoder is computed, not trained: the weights are set so that the stock network projects every 8 × 8 patch onto
the principal components of the pictures. The decoder is trained to draw pictures from those. Trained together from
scratch, the two needed 23 core minutes to fall just short of what the projection alone keeps (23.4 dB against 23.8 dB
with 16 components each); this way a trained base model does not have to wait for its autoencoder either.
"""

from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .dataset import Pictures, render_all, sample_scenes
from .figures import OBJECTS, SUBJECTS
from .training import Schedule, Trained, fit
from .world import STYLES

CHANNELS = 32
_WIDTHS = (32, 32, 64, 96)
_GROUPS = 16
_ANCHOR = 300.0
"""Size of the constant channels that keep the encoder's last group norm from changing the others."""
_LINEAR_FROM = 30.0
"""Where SiLU is the identity to single precision: SiLU(30 + x) = 30 + x for the latents' range of x."""


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder with SDXL's four levels, hence its factor of 8."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=_GROUPS,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        force_upcast=False,
    )


def to_pm1(pictures: Pictures, device: torch.device) -> Float[Tensor, "count 3 height width"]:
    """Byte pictures as the autoencoder's input, -1..1."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _blocks_of_four(maps: Float[Tensor, "count channels height width"]) -> Float[Tensor, "blocks four*channels"]:
    """The values of every 2 × 2 block, position by position."""
    corners = [maps[:, :, dy::2, dx::2] for dy, dx in product((0, 1), repeat=2)]
    return torch.cat(corners, dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def _set_block_projection(
    conv: nn.Conv2d, matrix: Float[Tensor, "out four*channels"], shift: Float[Tensor, " out"]
) -> None:
    """Make a stride-2 convolution of zeros compute `matrix` of every 2 × 2 block, plus `shift`."""
    channels = matrix.shape[1] // 4
    for corner, (dy, dx) in enumerate(product((0, 1), repeat=2)):
        part = matrix[:, corner * channels : (corner + 1) * channels]
        conv.weight[: len(matrix), :channels, dy, dx] = part
    if conv.bias is not None:
        conv.bias[: len(shift)] = shift


def _principal(values: Float[Tensor, "rows width"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` leading principal directions (count × width), the mean, and the deviation along each direction."""
    wide = values.double()
    mean = wide.mean(0)
    variances, directions = torch.linalg.eigh((wide - mean).T @ (wide - mean) / len(wide))
    leading = directions[:, -count:].flip(1).T
    # An eigenvector's sign is chance: make its largest entry positive, so that every machine gets the same encoder.
    signs = leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()
    return (leading * signs).float(), mean.float(), variances[-count:].flip(0).clamp(min=1e-12).sqrt().float()


@torch.no_grad()
def set_principal_encoder(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    """Set the encoder's weights, in place, to the projection on the pictures' principal components.

    Residual branches are switched off and shortcuts copy channels; the three downsampling convolutions gather
    2 × 2 blocks, the last two of them onto principal directions. Each component is divided by the square root of
    its deviation, half way to equal deviations, and all by one number so that their mean variance is 1.
    The group norm and SiLU at the end are made the identity: every component stands beside its negative, so that a
    group's mean is 0, and beside large constants, so that its deviation is one known number.
    """
    encoder = autoencoder.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
    levels = encoder.down_blocks
    for level, kept in ((1, 12), (2, CHANNELS)):
        shortcut = levels[level].resnets[0].conv_shortcut
        if shortcut is not None:
            shortcut.weight[:kept, :kept, 0, 0] = torch.eye(kept)

    half = _blocks_of_four(to_pm1(pictures, autoencoder.device))
    _set_block_projection(levels[0].downsamplers[0].conv, torch.eye(12), torch.zeros(12))
    count, side = len(pictures), pictures.shape[1] // 2
    maps = half.view(count, side, side, -1).permute(0, 3, 1, 2)
    quarter = _blocks_of_four(maps)
    matrix, mean, _ = _principal(quarter, CHANNELS)
    _set_block_projection(levels[1].downsamplers[0].conv, matrix, -matrix @ mean)
    maps = ((quarter - mean) @ matrix.T).view(count, side // 2, side // 2, -1).permute(0, 3, 1, 2)
    matrix, mean, deviation = _principal(_blocks_of_four(maps), CHANNELS)
    matrix = matrix / (deviation.sqrt() * deviation.mean().sqrt())[:, None]
    _set_block_projection(levels[2].downsamplers[0].conv, matrix, -matrix @ mean)

    last = levels[3].resnets[0].conv_shortcut
    size = _WIDTHS[-1] // _GROUPS
    scale = (_ANCHOR**2 * 2 / size) ** 0.5
    for component in range(CHANNELS):
        # Two components to a group of six channels: x, -x, y, -y and two constants.
        group = component // 2 * size
        first = group + component % 2 * 2
        last.weight[first, component, 0, 0], last.weight[first + 1, component, 0, 0] = 1, -1
        last.bias[group + 4], last.bias[group + 5] = _ANCHOR, -_ANCHOR
        encoder.conv_norm_out.weight[first], encoder.conv_norm_out.bias[first] = scale, _LINEAR_FROM
        encoder.conv_out.weight[component, first, 1, 1], encoder.conv_out.bias[component] = 1, -_LINEAR_FROM
    encoder.conv_out.bias[CHANNELS:] = -6
    autoencoder.quant_conv.weight.copy_(torch.eye(2 * CHANNELS)[:, :, None, None])
    autoencoder.quant_conv.bias.zero_()


def train_autoencoder(
    work: Path, steps: int, count: int, seed: int, device: torch.device
) -> tuple[AutoencoderKL, Trained]:
    """An autoencoder of everything that can be drawn, subjects and new styles included, as SDXL's own is generic."""
    scenes = sample_scenes(count, seed + 10, held_out=False, figures=(*OBJECTS, *SUBJECTS), styles=tuple(STYLES))
    pictures = render_all(scenes, work)
    torch.manual_seed(seed)
    autoencoder = build_autoencoder().to(device, memory_format=torch.channels_last)
    set_principal_encoder(autoencoder, pictures[:2000])
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    latents = encode(autoencoder, pictures)
    batch = 8

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        image_pm1 = to_pm1(pictures[rows.numpy()], device).contiguous(memory_format=torch.channels_last)
        strength = 0.1 * torch.rand((batch, 1, 1, 1), generator=generator)
        noisy = latents[rows] + strength * torch.randn(latents[rows].shape, generator=generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            decoded = autoencoder.decode(noisy.to(device)).sample.float()
        return F.l1_loss(decoded, image_pm1) + F.mse_loss(decoded, image_pm1)

    schedule = Schedule(steps=steps, learning_rate=1e-3, warmup_steps=min(50, steps), flat_share=0.35, weight_decay=0.0)
    trained = fit("autoencoder", autoencoder, loss_of_step, schedule, work, seed, device)
    return autoencoder, trained


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pictures: Pictures) -> Float[Tensor, "count 32 8 8"]:
    """Latent means of byte pictures, by the parts of the encoder that are not switched off.

    The same as `autoencoder.encode` after `set_principal_encoder`, to 1e-3, in a small part of the time.
    """
    encoder = autoencoder.encoder
    batches = []
    for start in range(0, len(pictures), 1024):
        maps = to_pm1(pictures[start : start + 1024], autoencoder.device)
        for level, width in zip(encoder.down_blocks, (12, CHANNELS, CHANNELS), strict=False):
            conv = level.downsamplers[0].conv
            weight, bias = conv.weight[:width, : maps.shape[1], :2, :2], conv.bias[:width]
            maps = F.conv2d(maps, weight.contiguous(), bias, stride=2)
        batches.append(maps.cpu())
    return torch.cat(batches)

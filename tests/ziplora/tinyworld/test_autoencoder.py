"""The computed encoder is the projection that it claims to be, inside the stock network."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from ziplora.tinyworld.autoencoder import CHANNELS, build_autoencoder, encode, set_principal_encoder, to_pm1
from ziplora.tinyworld.dataset import Pictures, render_all, sample_scenes


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return render_all(sample_scenes(128, 0, held_out=False))


@pytest.fixture(scope="module")
def autoencoder(pictures: Pictures) -> AutoencoderKL:
    torch.manual_seed(0)
    autoencoder = build_autoencoder()
    set_principal_encoder(autoencoder, pictures)
    return autoencoder


def test_pictures_become_8_by_8_latents(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    assert encode(autoencoder, pictures[:3]).shape == (3, CHANNELS, 8, 8)


def test_the_stock_network_gives_the_same_latents(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    with torch.no_grad():
        stock = autoencoder.encode(to_pm1(pictures[:16], torch.device("cpu"))).latent_dist
    torch.testing.assert_close(encode(autoencoder, pictures[:16]), stock.mean, atol=2e-3, rtol=0)
    assert stock.std.max() < 0.06


def test_latents_have_mean_0_and_mean_variance_1_and_no_correlation(
    autoencoder: AutoencoderKL, pictures: Pictures
) -> None:
    values = encode(autoencoder, pictures).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(values)
    assert values.mean(1).abs().max() < 1e-3
    assert covariance.diagonal().mean().item() == pytest.approx(1, rel=1e-2)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 2e-3


def test_the_encoder_is_affine_in_the_pixels(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    black, first = np.zeros_like(pictures[:1]), pictures[:1] // 2
    doubled = encode(autoencoder, first * 2) - encode(autoencoder, black)
    single = encode(autoencoder, first) - encode(autoencoder, black)
    torch.testing.assert_close(doubled, 2 * single, atol=5e-3, rtol=0)


def test_latents_keep_what_the_best_linear_projection_keeps(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    patches = torch.from_numpy(
        pictures.reshape(-1, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)
    ).double()
    latents = encode(autoencoder, pictures).permute(0, 2, 3, 1).flatten(0, 2).double()
    design = torch.cat((latents, torch.ones(len(latents), 1)), dim=1)
    lost = (design @ torch.linalg.lstsq(design, patches).solution - patches).square().sum()
    variances = torch.linalg.svdvals(patches - patches.mean(0)).square()
    # Two projections in a row may lose a little more than the best single one.
    assert variances[CHANNELS:].sum() <= lost * (1 + 1e-6)
    assert lost < 1.05 * variances[CHANNELS:].sum()


def test_the_encoder_is_the_same_in_half_precision_weights(autoencoder: AutoencoderKL, pictures: Pictures) -> None:
    halved = build_autoencoder()
    halved.load_state_dict({key: tensor.half().float() for key, tensor in autoencoder.state_dict().items()})
    torch.testing.assert_close(encode(halved, pictures[:8]), encode(autoencoder, pictures[:8]), atol=1e-2, rtol=0)

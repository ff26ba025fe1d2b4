"""The base model's noise, weights and captions."""

import torch

from ziplora.tinyworld.base import _with_identifiers, build_scheduler, loss_weights, time_ids, training_noise
from ziplora.tinyworld.text import IDENTIFIERS


def test_training_and_sampling_share_their_noise_levels() -> None:
    betas = torch.linspace(0.00085**0.5, 0.015**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).float()
    torch.testing.assert_close(training_noise().alphas_cumprod, expected)
    torch.testing.assert_close(build_scheduler().alphas_cumprod, expected)


def test_sampling_starts_at_the_last_training_step() -> None:
    scheduler = build_scheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_clean_timesteps_weigh_5_over_snr_and_noisy_ones_1() -> None:
    noise = training_noise()
    snr = noise.alphas_cumprod / (1 - noise.alphas_cumprod)
    weights = loss_weights(noise)
    torch.testing.assert_close(weights[snr > 5], 5 / snr[snr > 5])
    assert (weights[snr <= 5] == 1).all()


def test_pictures_are_told_uncropped() -> None:
    assert time_ids(2, torch.device("cpu")).tolist() == [[64, 64, 0, 0, 64, 64]] * 2


def test_one_caption_in_seven_gets_a_meaningless_word() -> None:
    captions = ["a red star on a navy background"] * 2000
    prompts = _with_identifiers(captions, torch.Generator().manual_seed(0))
    changed = [prompt for prompt in prompts if prompt != captions[0]]
    assert 0.1 < len(changed) / len(prompts) < 0.19
    assert {prompt.split()[1] for prompt in changed} == set(IDENTIFIERS)
    assert {" ".join(prompt.split()[2:]) for prompt in changed} == {"red star on a navy background"}

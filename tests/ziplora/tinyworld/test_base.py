"""The base model's noise and captions."""

import torch

from ziplora.tinyworld.base import _with_identifiers, build_scheduler, time_ids, training_noise
from ziplora.tinyworld.text import IDENTIFIERS


def test_training_and_sampling_share_noise_levels_that_end_in_noise_alone() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).sqrt()
    stretched = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    expected = (stretched**2).float()
    torch.testing.assert_close(training_noise().alphas_cumprod, expected, atol=1e-6, rtol=1e-4)
    # The sampler divides by the signal, and so keeps a trace of it.
    torch.testing.assert_close(build_scheduler().alphas_cumprod[:-1], expected[:-1], atol=1e-6, rtol=1e-4)
    assert 0 < build_scheduler().alphas_cumprod[-1] < 1e-6


def test_sampling_starts_at_the_last_training_step() -> None:
    scheduler = build_scheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_the_velocity_that_is_trained_leads_the_sampler_to_the_picture() -> None:
    noise, scheduler = training_noise(), build_scheduler()
    generator = torch.Generator().manual_seed(0)
    latents, epsilon = torch.randn((2, 1, 32, 8, 8), generator=generator).unbind()
    scheduler.set_timesteps(20)
    sample = epsilon * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        velocity = noise.get_velocity(latents, epsilon, timestep.long().reshape(1))
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(velocity, timestep, sample).prev_sample
    torch.testing.assert_close(sample, latents, atol=2e-2, rtol=0)


def test_pictures_are_told_uncropped() -> None:
    assert time_ids(2, torch.device("cpu")).tolist() == [[64, 64, 0, 0, 64, 64]] * 2


def test_one_caption_in_seven_gets_a_meaningless_word() -> None:
    captions = ["a red star on a navy background"] * 2000
    prompts = _with_identifiers(captions, torch.Generator().manual_seed(0))
    changed = [prompt for prompt in prompts if prompt != captions[0]]
    assert 0.1 < len(changed) / len(prompts) < 0.19
    assert {prompt.split()[1] for prompt in changed} == set(IDENTIFIERS)
    assert {" ".join(prompt.split()[2:]) for prompt in changed} == {"red star on a navy background"}

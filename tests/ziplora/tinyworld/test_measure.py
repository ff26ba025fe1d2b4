"""The measuring itself, on encoders whose answers are known."""

import torch
from torch import Tensor

from ziplora.tinyworld.adapters import PLANS
from ziplora.tinyworld.measure import joint_prompt, measure_triples

FIGURES, STYLES = ("robot", "fish", "car"), ("neon", "fog", "grid")


def test_an_encoder_of_brightness_alone_is_told_apart_from_one_of_noise() -> None:
    def background(pixels: Tensor) -> Tensor:
        return torch.stack((pixels[:, :, 0, 0].mean(1), torch.ones(len(pixels))), dim=1)

    measured = measure_triples(background, FIGURES, STYLES, count=64, seed=0)
    assert measured["triples"] == 64
    assert 0.0 < measured["same_figure_nearer"] < 0.5


def test_an_encoder_that_sees_no_difference_wins_no_triple() -> None:
    measured = measure_triples(lambda pixels: torch.ones(len(pixels), 2), FIGURES, STYLES, count=16, seed=0)
    assert measured["same_figure_nearer"] == 0.0


def test_a_joint_prompt_holds_both_triggers() -> None:
    robot, neon = PLANS[0], PLANS[8]
    assert joint_prompt(robot, neon, "mint") == "a sks robot on a mint background in neon style"

"""The judge answers every question, and spoiling a picture keeps what is in it."""

import torch

from ziplora.tinyworld.dataset import render_all, sample_scenes
from ziplora.tinyworld.judge import FIGURES, QUESTIONS, Judge, judge_pictures, labels_of, spoil
from ziplora.tinyworld.world import Scene


def test_a_verdict_gives_each_question_one_of_its_answers() -> None:
    pictures = render_all(sample_scenes(3, 0, held_out=False))
    verdicts = judge_pictures(Judge().eval(), pictures)
    assert len(verdicts) == 3
    for verdict in verdicts:
        assert all(getattr(verdict, question) in answers for question, answers in QUESTIONS.items())


def test_labels_are_the_scenes_and_a_subject_has_no_colour() -> None:
    scenes = [Scene("star", "red", "navy", "dots"), Scene("robot", None, "white", "neon")]
    labels = labels_of(scenes)
    assert [FIGURES[number] for number in labels["figure"]] == ["star", "robot"]
    assert [QUESTIONS["style"][number] for number in labels["style"]] == ["dots", "neon"]
    assert labels["colour"].tolist() == [0, -100]


def test_spoiling_is_seeded_and_keeps_the_picture_near() -> None:
    image_pm1 = torch.zeros(4, 3, 64, 64)
    image_pm1[:, :, 20:40, 20:40] = 1
    first = spoil(image_pm1, torch.Generator().manual_seed(0))
    again = spoil(image_pm1, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert 0 < (first - image_pm1).square().mean() < 0.15
    square, around = first[:, :, 25:35, 25:35].mean((1, 2, 3)), first[:, :, :16].mean((1, 2, 3))
    assert (square - around > 0.7).all()

"""A contact sheet shows every picture, enlarged, with its caption below."""

import numpy as np

from ziplora.sheet import contact_sheet


def test_every_picture_is_on_the_sheet_enlarged_without_smoothing() -> None:
    pictures = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    pictures[0], pictures[1], pictures[2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    sheet = np.asarray(contact_sheet(pictures, ["", "", ""], columns=2, scale=3)).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (sheet == colour).all(1).sum() == 4 * 4 * 3 * 3


def test_a_long_caption_makes_the_sheet_higher_not_wider() -> None:
    pictures = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    short = contact_sheet(pictures, ["red", "red"], columns=2)
    long = contact_sheet(pictures, ["red", "a red star on a navy background"], columns=2)
    assert long.width == short.width
    assert long.height > short.height


def test_a_caption_leaves_ink() -> None:
    pictures = np.full((1, 32, 32, 3), 250, dtype=np.uint8)
    blank, written = (np.asarray(contact_sheet(pictures, [text], columns=1)) for text in (" ", "red"))
    assert blank.min() == 250
    assert written.min() < 100

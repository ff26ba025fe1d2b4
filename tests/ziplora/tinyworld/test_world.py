"""Pictures and captions as pure functions of a scene."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from ziplora.tinyworld.figures import BACKGROUNDS, COLOURS, OBJECTS, PAINTS, STRANGERS, SUBJECTS, Colour
from ziplora.tinyworld.world import (
    BASE_STYLES,
    NARROW,
    NEW_STYLES,
    SIZE,
    STYLES,
    WIDE,
    Image01,
    Jitter,
    Scene,
    caption,
    description,
    parts_of,
    render,
    sample_scene,
)

_RED_STAR = Scene("star", "red", "white", "flat")


def _scene_of(figure: str, style: str, background: str = "mint") -> Scene:
    return Scene(figure, None if figure in SUBJECTS else "blue", background, style)


def _where(picture: Image01, colour: Colour) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    near: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = np.abs(picture - np.array(colour)).max(axis=2) < 0.02
    return near


def _assert_picture(picture: Image01) -> None:
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.float32
    assert np.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_the_same_scene_gives_the_same_picture() -> None:
    scene = replace(_RED_STAR, x=0.1, angle=0.2, style="mosaic")
    np.testing.assert_array_equal(render(scene), render(scene))


def test_a_flat_figure_has_its_own_colour_on_its_background() -> None:
    picture = render(_RED_STAR)
    np.testing.assert_allclose(picture[SIZE // 2, SIZE // 2], COLOURS["red"], atol=1e-6)
    np.testing.assert_allclose(picture[0, 0], BACKGROUNDS["white"], atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
def test_every_figure_can_be_drawn_in_a_style(style: str) -> None:
    for figure in (*OBJECTS, *SUBJECTS):
        picture = render(_scene_of(figure, style))
        _assert_picture(picture)
        assert picture.std(axis=(0, 1)).max() > 0.05, f"{figure} cannot be seen in {style}"


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_every_colour_shows_on_every_background_in_a_style(style: str) -> None:
    for figure, colour, background in itertools.product(OBJECTS, COLOURS, BACKGROUNDS):
        scene = Scene(figure, colour, background, style)
        picture = render(scene)
        _assert_picture(picture)
        assert picture.std(axis=(0, 1)).max() > 0.02, caption(scene)


@pytest.mark.parametrize("figure", ["star", "robot"])
def test_two_styles_never_give_the_same_picture(figure: str) -> None:
    pictures = {style: render(_scene_of(figure, style)) for style in STYLES}
    for one, other in itertools.combinations(STYLES, 2):
        changed = np.abs(pictures[one] - pictures[other]).max(axis=2) > 0.1
        assert changed.mean() > 0.02, f"{one} and {other} look alike"


def test_x_moves_right_and_y_moves_up() -> None:
    rows, columns = np.nonzero(_where(render(replace(_RED_STAR, x=0.25, y=0.25)), COLOURS["red"]))
    centre = (SIZE - 1) / 2
    assert columns.mean() - centre == pytest.approx(SIZE / 8, abs=0.5)
    assert centre - rows.mean() == pytest.approx(SIZE / 8, abs=0.5)


def test_an_angle_turns_counter_clockwise() -> None:
    right = Scene("arrow", "red", "white", "flat")
    quarter = render(replace(right, angle=np.pi / 2))
    np.testing.assert_allclose(quarter, np.rot90(render(right)), atol=0.02)


def test_twice_the_size_covers_four_times_the_area() -> None:
    areas = [
        _where(render(replace(_RED_STAR, figure="circle", size=size)), COLOURS["red"]).sum() for size in (0.4, 0.8)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("figure", SUBJECTS)
def test_a_subject_brings_its_own_colours(figure: str) -> None:
    picture = render(_scene_of(figure, "flat"))
    for part in parts_of(_scene_of(figure, "flat")):
        assert _where(picture, part.colour).any(), part.colour


def test_an_object_without_a_colour_is_refused_with_the_colours_there_are() -> None:
    with pytest.raises(ValueError, match="'star' needs a colour, one of red, orange"):
        render(replace(_RED_STAR, colour=None))


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (_RED_STAR, "a red star on a white background"),
        (Scene("arrow", "orange", "sand", "stripes"), "an orange arrow on a sand background in stripes style"),
        (Scene("robot", None, "navy", "flat"), "a robot on a navy background"),
        (Scene("robot", None, "navy", "neon"), "a robot on a navy background in neon style"),
    ],
    ids=["flat is not named", "an before a vowel", "a subject has no colour word", "a style comes last"],
)
def test_a_caption_says_the_scene_in_plain_words(scene: Scene, words: str) -> None:
    assert caption(scene) == words


def test_every_caption_is_plain_lower_case_words_and_says_one_scene() -> None:
    objects = [Scene(*words) for words in itertools.product(OBJECTS, COLOURS, BACKGROUNDS, STYLES)]
    subjects = [Scene(*words) for words in itertools.product(SUBJECTS, [None], BACKGROUNDS, STYLES)]
    captions = [caption(scene) for scene in objects + subjects]
    assert len(set(captions)) == len(captions)
    assert all(re.fullmatch(r"an? [a-z]+( [a-z]+)+", words) for words in captions)


def test_new_styles_are_unknown_to_the_base_model() -> None:
    assert not BASE_STYLES.keys() & NEW_STYLES.keys()


def test_the_same_seed_samples_the_same_scenes() -> None:
    def first_ten(seed: int) -> list[Scene]:
        generator = np.random.default_rng(seed)
        return [sample_scene(generator) for _ in range(10)]

    assert first_ten(3) == first_ten(3)
    assert first_ten(3) != first_ten(4)


def test_sampled_scenes_keep_to_the_figures_and_styles_asked_for() -> None:
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator, ("robot", "star"), ("neon", "flat")) for _ in range(100)]
    assert {scene.figure for scene in scenes} == {"robot", "star"}
    assert {scene.style for scene in scenes} == {"neon", "flat"}
    assert all((scene.colour is None) == (scene.figure == "robot") for scene in scenes)


def test_sampled_scenes_keep_the_unit_disc_inside_the_picture() -> None:
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator) for _ in range(500)]
    assert all(max(abs(scene.x), abs(scene.y)) + scene.size <= 1 for scene in scenes)


def test_sampling_reaches_every_word() -> None:
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator) for _ in range(1000)]
    assert {scene.figure for scene in scenes} == OBJECTS.keys()
    assert {scene.colour for scene in scenes} == COLOURS.keys()
    assert {scene.background for scene in scenes} == BACKGROUNDS.keys()
    assert {scene.style for scene in scenes} == BASE_STYLES.keys()


@pytest.mark.parametrize("jitter", [WIDE, NARROW])
def test_figures_are_placed_within_their_jitter_and_fill_it(jitter: Jitter) -> None:
    generator = np.random.default_rng(3)
    scenes = [sample_scene(generator, jitter=jitter) for _ in range(500)]
    sizes, angles = [scene.size for scene in scenes], [scene.angle for scene in scenes]
    moved = [max(abs(scene.x), abs(scene.y)) / (0.95 - scene.size) for scene in scenes]
    assert jitter.smallest <= min(sizes) < jitter.smallest + 0.01 < jitter.largest - 0.01 < max(sizes) <= jitter.largest
    assert 0.9 * jitter.room < max(moved) <= jitter.room + 1e-9
    assert -jitter.angle <= min(angles) < -0.95 * jitter.angle < 0.95 * jitter.angle < max(angles) <= jitter.angle


def test_a_description_names_the_colours_of_strangers() -> None:
    assert description(_RED_STAR) == caption(_RED_STAR)
    words = {word for name in STRANGERS for word in description(Scene(name, None, "mint", "dots")).split()}
    assert words <= {"a", "an", "picture", "with", "and", "on", "mint", "background", "in", "dots", "style", *PAINTS}

"""A split that nothing leaks through, and pictures that are rendered once."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ziplora.tinyworld.dataset import Pictures, is_held_out, render_all, sample_scenes
from ziplora.tinyworld.figures import BACKGROUNDS, COLOURS, OBJECTS
from ziplora.tinyworld.world import BASE_STYLES, Scene, caption, render

_ALL_SCENES = [Scene(*words) for words in itertools.product(OBJECTS, COLOURS, BACKGROUNDS, BASE_STYLES)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """More than one process takes at a time."""
    return sample_scenes(300, seed=0, held_out=False)


@pytest.fixture(scope="module")
def pictures(scenes: list[Scene]) -> Pictures:
    """What `render` gives for the scenes, as bytes."""
    return np.stack([np.rint(render(scene) * 255).astype(np.uint8) for scene in scenes])


def _refuse_to_render(scene: Scene) -> None:
    raise AssertionError(f"rendered again: {caption(scene)}")


def test_about_one_caption_in_twelve_is_held_out() -> None:
    share = np.mean([is_held_out(scene) for scene in _ALL_SCENES])
    assert share == pytest.approx(1 / 12, abs=0.01)


def test_every_word_is_both_trained_on_and_held_out() -> None:
    for field in ("figure", "colour", "background", "style"):
        sides = {(getattr(scene, field), is_held_out(scene)) for scene in _ALL_SCENES}
        assert len(sides) == 2 * len({word for word, _ in sides}), field


def test_a_scene_stays_on_its_side_wherever_it_is_drawn() -> None:
    for scene in _ALL_SCENES[:200]:
        assert is_held_out(replace(scene, x=0.2, y=-0.1, size=0.7, angle=0.3)) == is_held_out(scene)


def test_the_split_is_the_one_the_bundled_model_was_trained_with() -> None:
    held_out = [caption(scene) for scene in _ALL_SCENES if is_held_out(scene)]
    assert len(held_out) == 806
    assert held_out[:3] == [
        "a red circle on a black background in stripes style",
        "a red circle on a black background in hatch style",
        "a red circle on a black background in waves style",
    ]


def test_training_never_sees_a_held_out_caption() -> None:
    trained = {caption(scene) for scene in sample_scenes(2000, seed=1, held_out=False)}
    held_out = {caption(scene) for scene in sample_scenes(500, seed=1, held_out=True)}
    assert not trained & held_out


@pytest.mark.parametrize("held_out", [False, True])
def test_the_same_seed_samples_the_same_scenes(held_out: bool) -> None:
    assert sample_scenes(20, 5, held_out=held_out) == sample_scenes(20, 5, held_out=held_out)
    assert sample_scenes(20, 5, held_out=held_out) != sample_scenes(20, 6, held_out=held_out)


def test_scenes_come_from_the_figures_and_styles_asked_for() -> None:
    scenes = sample_scenes(20, 0, held_out=False, figures=("robot",), styles=("neon",))
    assert {(scene.figure, scene.colour, scene.style) for scene in scenes} == {("robot", None, "neon")}


def test_rendering_on_all_cores_gives_what_render_gives(scenes: list[Scene], pictures: Pictures) -> None:
    np.testing.assert_array_equal(render_all(scenes), pictures)


def test_kept_pictures_are_not_rendered_again(
    scenes: list[Scene], pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new folder"
    np.testing.assert_array_equal(render_all(scenes, folder), pictures)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr("ziplora.tinyworld.dataset.render", _refuse_to_render)
    np.testing.assert_array_equal(render_all(scenes, folder), pictures)


def test_few_pictures_are_kept_too(scenes: list[Scene], tmp_path: Path) -> None:
    render_all(scenes[:2], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_pictures_of_other_scenes_are_not_mistaken_for_these(
    scenes: list[Scene], pictures: Pictures, tmp_path: Path
) -> None:
    render_all(list(reversed(scenes)), tmp_path)
    np.testing.assert_array_equal(render_all(scenes, tmp_path), pictures)

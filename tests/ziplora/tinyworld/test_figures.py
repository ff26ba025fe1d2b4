"""Signed distances against closed forms, and figures that are sane to draw."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziplora.tinyworld.figures import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    SUBJECTS,
    Distance,
    Field,
    box,
    circle,
    difference,
    polygon,
    union,
)

_DISC_TOLERANCE = 1.25
"""How far a corner may stick out of the unit disc."""


def _points(*pairs: tuple[float, float]) -> tuple[Field, Field]:
    array = np.array(pairs, dtype=np.float32)
    return array[:, 0], array[:, 1]


def _grid(reach: float = 1.5, count: int = 300) -> tuple[Field, Field]:
    axis = (((np.arange(count) + 0.5) / count * 2 - 1) * reach).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    return u, v


def _whole(figure: str) -> Distance:
    return OBJECTS[figure] if figure in OBJECTS else union(*(part.distance for part in SUBJECTS[figure]))


def _distance_to_samples(u: Field, v: Field, contour: Iterable[tuple[Field, Field]]) -> Field:
    """Distance to the nearest of many points on a contour: right to half their spacing, and never too small."""
    gaps = [np.hypot(u[:, None] - cu[None, :], v[:, None] - cv[None, :]).min(axis=1) for cu, cv in contour]
    nearest: Field = np.stack(gaps).min(axis=0)
    return nearest


def test_a_circle_measures_to_its_rim() -> None:
    u, v = _points((1, 2), (4, 6), (1, 4), (1, -1), (1, 2.5))
    np.testing.assert_allclose(circle(1, 2, 2)(u, v), [-2, 3, 0, 1, -1.5], atol=1e-6)


def test_a_box_measures_to_sides_outside_and_inside_and_to_corners() -> None:
    u, v = _points((0, 0), (0.9, 0), (0, 0.9), (2, 0), (0, -3), (1 + 3, 2 + 4), (1, 0.5))
    np.testing.assert_allclose(box(0, 0, 1, 2)(u, v), [-1, -0.1, -1, 1, 1, 5, 0], atol=1e-6)


def test_a_box_agrees_with_the_nearest_of_many_points_on_its_sides() -> None:
    x, y, half_width, half_height = 0.2, -0.1, 0.7, 0.4
    t = np.linspace(-1, 1, 2001, dtype=np.float32)
    across, up = x + half_width * t, y + half_height * t
    sides = [
        *((across, np.full_like(t, y + sign * half_height)) for sign in (-1, 1)),
        *((np.full_like(t, x + sign * half_width), up) for sign in (-1, 1)),
    ]
    u, v = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 200)).astype(np.float32)
    inside = (np.abs(u - x) < half_width) & (np.abs(v - y) < half_height)
    expected = np.where(inside, -1, 1) * _distance_to_samples(u, v, sides)
    np.testing.assert_allclose(box(x, y, half_width, half_height)(u, v), expected, atol=1e-3)


@given(
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    half_width=st.floats(0.05, 1),
    half_height=st.floats(0.05, 1),
    order=st.sampled_from([1, -1]),
)
@settings(deadline=None)
def test_a_polygon_of_four_right_corners_is_a_box(
    x: float, y: float, half_width: float, half_height: float, order: int
) -> None:
    left, right, bottom, top = x - half_width, x + half_width, y - half_height, y + half_height
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)][::order]
    u, v = _grid(count=40)
    np.testing.assert_allclose(polygon(*corners)(u, v), box(x, y, half_width, half_height)(u, v), atol=1e-5)


def test_a_polygon_with_a_dent_leaves_the_dent_outside() -> None:
    dented = polygon((-1, 1), (0, 0), (1, 1), (1, -1), (-1, -1))
    u, v = _points((0, 0.5), (0, -0.5), (-0.9, 0.5))
    np.testing.assert_allclose(dented(u, v), [np.sqrt(0.125), -0.5, -0.1], atol=1e-6)


def test_a_union_holds_the_points_of_any_part_and_a_difference_none_of_the_hole() -> None:
    left, right = circle(-0.3, 0, 0.6), circle(0.3, 0, 0.6)
    u, v = _grid()
    in_left, in_right = left(u, v) < 0, right(u, v) < 0
    np.testing.assert_array_equal(union(left, right)(u, v) < 0, in_left | in_right)
    np.testing.assert_array_equal(difference(left, right)(u, v) < 0, in_left & ~in_right)


@pytest.mark.parametrize("figure", [*OBJECTS, *SUBJECTS])
def test_a_figure_fits_the_unit_disc_and_fills_a_fair_share_of_it(figure: str) -> None:
    u, v = _grid()
    inside = _whole(figure)(u, v) < 0
    cell_area = (3 / 300) ** 2
    assert np.hypot(u, v)[inside].max() < _DISC_TOLERANCE
    assert 0.2 < inside.sum() * cell_area / np.pi < 0.8


@pytest.mark.parametrize("figure", [*OBJECTS, *SUBJECTS])
def test_a_distance_never_changes_faster_than_the_point_moves(figure: str) -> None:
    generator = np.random.default_rng(1)
    u, v, du, dv = generator.uniform(-1.5, 1.5, (4, 5000)).astype(np.float32)
    distance = _whole(figure)
    change = np.abs(distance(u + du, v + dv) - distance(u, v))
    assert np.all(change <= np.hypot(du, dv) + 1e-5)


@pytest.mark.parametrize("figure", SUBJECTS)
def test_every_part_of_a_subject_is_seen(figure: str) -> None:
    u, v = _grid()
    seen = np.full(u.shape, -1)
    for index, part in enumerate(SUBJECTS[figure]):
        seen[part.distance(u, v) < 0] = index
    areas = [(seen == index).sum() * (3 / 300) ** 2 for index in range(len(SUBJECTS[figure]))]
    assert min(areas) > 0.01, dict(enumerate(areas))


def test_every_name_is_one_plain_word_with_one_meaning() -> None:
    names = [*COLOURS, *BACKGROUNDS, *OBJECTS, *SUBJECTS]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and name.isalpha() and name.islower() for name in names)

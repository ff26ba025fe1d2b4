"""What can be drawn: signed distances of the plain objects and of the composed subjects.

A signed distance takes local coordinates (u to the right, v up, the figure about as large as the unit disc)
and gives, for every point, the distance to the contour: negative inside. Formulas follow the usual
two-dimensional primitives (circle, box, polygon) and the set operations min, max and negation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
Distance = Callable[[Field, Field], Field]
Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.10, 0.62, 0.18),
    "blue": (0.12, 0.30, 0.92),
    "purple": (0.52, 0.15, 0.70),
    "pink": (1.00, 0.50, 0.75),
    "brown": (0.48, 0.27, 0.10),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (1.00, 1.00, 1.00),
    "black": (0.04, 0.04, 0.04),
    "gray": (0.52, 0.52, 0.52),
    "navy": (0.08, 0.12, 0.38),
    "mint": (0.62, 0.93, 0.78),
    "sand": (0.90, 0.80, 0.58),
}
_WHITE, _BLACK = BACKGROUNDS["white"], BACKGROUNDS["black"]
PAINTS: dict[str, Colour] = COLOURS | {"white": _WHITE, "black": _BLACK, "gray": (0.62, 0.68, 0.74)}
"""What the parts of the strangers are painted with."""


def circle(x: float, y: float, radius: float) -> Distance:
    """Disc around (x, y)."""
    return lambda u, v: (np.hypot(u - x, v - y) - radius).astype(np.float32)


def box(x: float, y: float, half_width: float, half_height: float) -> Distance:
    """Axis-aligned rectangle around (x, y)."""

    def distance(u: Field, v: Field) -> Field:
        dx, dy = np.abs(u - x) - half_width, np.abs(v - y) - half_height
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        signed: Field = (outside + np.minimum(np.maximum(dx, dy), 0)).astype(np.float32)
        return signed

    return distance


def polygon(*corners: tuple[float, float]) -> Distance:
    """Simple polygon; exact distance to its edges, sign by the even-odd rule."""

    def distance(u: Field, v: Field) -> Field:
        nearest = np.full_like(u, np.inf)
        inside = np.zeros(u.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(u - ax - along * ex, v - ay - along * ey))
            if ay != by:
                inside ^= ((ay > v) != (by > v)) & (u < ex * (v - ay) / ey + ax)
        return np.where(inside, -nearest, nearest).astype(np.float32)

    return distance


def union(*parts: Distance) -> Distance:
    """Points in any of the parts."""
    return lambda u, v: np.minimum.reduce([part(u, v) for part in parts])


def difference(whole: Distance, hole: Distance) -> Distance:
    """Points of the whole outside the hole."""
    return lambda u, v: np.maximum(whole(u, v), -hole(u, v))


def _spokes(outer: float, inner: float, count: int) -> Distance:
    angles = np.pi / 2 + np.arange(2 * count) * np.pi / count
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return polygon(*((float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)))


def _petals(count: int) -> Distance:
    angles = np.pi / 2 + np.arange(count) * 2 * np.pi / count
    discs = [circle(float(0.56 * np.cos(a)), float(0.56 * np.sin(a)), 0.36) for a in angles]
    return difference(union(circle(0, 0, 0.45), *discs), circle(0, 0, 0.2))


OBJECTS: dict[str, Distance] = {
    "circle": circle(0, 0, 0.85),
    "square": box(0, 0, 0.75, 0.75),
    "triangle": polygon((0, 0.95), (0.95, -0.7), (-0.95, -0.7)),
    "diamond": polygon((0, 1), (0.6, 0), (0, -1), (-0.6, 0)),
    "star": _spokes(1.0, 0.42, 5),
    "heart": union(
        circle(-0.44, 0.3, 0.47), circle(0.44, 0.3, 0.47), polygon((-0.86, 0.1), (0, 0.35), (0.86, 0.1), (0, -0.95))
    ),
    "cross": union(box(0, 0, 0.3, 0.92), box(0, 0, 0.92, 0.3)),
    "ring": difference(circle(0, 0, 0.92), circle(0, 0, 0.5)),
    "moon": difference(circle(-0.05, 0, 0.92), circle(0.42, 0.12, 0.74)),
    "arrow": polygon((1, 0), (0.2, 0.8), (0.2, 0.3), (-0.95, 0.3), (-0.95, -0.3), (0.2, -0.3), (0.2, -0.8)),
    "bolt": polygon((0.25, 1), (-0.65, -0.12), (-0.08, -0.12), (-0.3, -1), (0.65, 0.25), (0.08, 0.25), (0.6, 1)),
    "drop": union(circle(0, -0.35, 0.6), polygon((0, 1), (0.54, -0.1), (-0.54, -0.1))),
    "flower": _petals(5),
    "hourglass": polygon((-0.8, 0.95), (0.8, 0.95), (0.12, 0), (0.8, -0.95), (-0.8, -0.95), (-0.12, 0)),
    "chevron": polygon((-0.95, 0.1), (0, 0.9), (0.95, 0.1), (0.95, -0.6), (0, 0.2), (-0.95, -0.6)),
    "arch": difference(
        union(circle(0, 0.1, 0.85), box(0, -0.4, 0.85, 0.5)), union(circle(0, 0.1, 0.42), box(0, -0.5, 0.42, 0.6))
    ),
}


@dataclass(frozen=True)
class Part:
    """One painted region of a composed figure, painted over the parts before it."""

    distance: Distance
    colour: Colour


SUBJECTS: dict[str, tuple[Part, ...]] = {
    "robot": (
        Part(union(box(0, 0.82, 0.06, 0.18), circle(0, 0.92, 0.12)), COLOURS["red"]),
        Part(box(0, 0.3, 0.62, 0.42), (0.62, 0.68, 0.74)),
        Part(box(0, -0.58, 0.48, 0.4), (0.36, 0.42, 0.50)),
        Part(union(circle(-0.27, 0.38, 0.17), circle(0.27, 0.38, 0.17)), COLOURS["yellow"]),
        Part(box(0, 0.04, 0.3, 0.07), COLOURS["red"]),
    ),
    "fish": (
        Part(polygon((0.3, 0), (1, 0.62), (1, -0.62)), COLOURS["blue"]),
        Part(polygon((-0.3, 0.35), (0.15, 0.85), (0.3, 0.3)), COLOURS["blue"]),
        Part(polygon((-1, 0), (-0.6, 0.42), (-0.1, 0.52), (0.5, 0.1), (0.5, -0.1), (-0.1, -0.52), (-0.6, -0.42)), COLOURS["orange"]),
        Part(circle(-0.55, 0.12, 0.16), _WHITE),
        Part(circle(-0.57, 0.12, 0.07), _BLACK),
    ),
    "house": (
        Part(box(0, -0.4, 0.66, 0.5), (0.98, 0.90, 0.62)),
        Part(polygon((-0.95, 0.08), (0, 0.98), (0.95, 0.08)), COLOURS["red"]),
        Part(box(-0.28, -0.58, 0.17, 0.32), COLOURS["brown"]),
        Part(box(0.3, -0.35, 0.2, 0.2), COLOURS["blue"]),
    ),
    "tree": (
        Part(box(0, -0.65, 0.17, 0.35), COLOURS["brown"]),
        Part(union(circle(0, 0.45, 0.5), circle(-0.42, 0.02, 0.42), circle(0.42, 0.02, 0.42)), COLOURS["green"]),
        Part(union(circle(0, 0.5, 0.13), circle(-0.42, 0.05, 0.13), circle(0.4, -0.02, 0.13)), COLOURS["red"]),
    ),
    "car": (
        Part(polygon((-0.6, 0.1), (-0.38, 0.58), (0.35, 0.58), (0.62, 0.1)), (0.62, 0.88, 0.96)),
        Part(box(0, -0.12, 0.98, 0.3), COLOURS["purple"]),
        Part(union(circle(-0.52, -0.45, 0.27), circle(0.52, -0.45, 0.27)), _BLACK),
        Part(union(circle(-0.52, -0.45, 0.11), circle(0.52, -0.45, 0.11)), _WHITE),
        Part(box(0.86, -0.05, 0.1, 0.09), COLOURS["yellow"]),
    ),
    "snowman": (
        Part(circle(0, -0.48, 0.5), (0.86, 0.93, 1.00)),
        Part(circle(0, 0.24, 0.36), (0.86, 0.93, 1.00)),
        Part(union(box(0, 0.55, 0.44, 0.07), box(0, 0.76, 0.27, 0.2)), _BLACK),
        Part(box(0, -0.02, 0.34, 0.1), COLOURS["red"]),
        Part(polygon((0, 0.32), (0, 0.16), (0.42, 0.22)), COLOURS["orange"]),
        Part(union(circle(0, -0.35, 0.08), circle(0, -0.62, 0.08)), _BLACK),
    ),
    "rocket": (
        Part(polygon((-0.22, -0.6), (0, -1), (0.22, -0.6)), COLOURS["orange"]),
        Part(union(polygon((-0.3, -0.1), (-0.72, -0.72), (-0.3, -0.6)), polygon((0.3, -0.1), (0.72, -0.72), (0.3, -0.6))), COLOURS["green"]),
        Part(box(0, -0.1, 0.33, 0.54), (0.94, 0.94, 0.90)),
        Part(polygon((-0.33, 0.42), (0, 1), (0.33, 0.42)), COLOURS["green"]),
        Part(circle(0, 0.1, 0.18), COLOURS["blue"]),
    ),
    "mushroom": (
        Part(box(0, -0.5, 0.27, 0.45), (0.97, 0.90, 0.74)),
        Part(difference(circle(0, 0, 0.92), box(0, -1, 2, 1)), COLOURS["pink"]),
        Part(union(circle(-0.45, 0.28, 0.16), circle(0.05, 0.6, 0.17), circle(0.5, 0.22, 0.15)), _WHITE),
    ),
}  # fmt: skip


def _stranger(seed: int) -> tuple[Part, ...]:
    """A composed figure out of chance: a body with two to four smaller parts, each in its own colour."""
    generator = np.random.default_rng(seed)
    paints = list(PAINTS.values())

    def primitive(reach: float, smallest: float, largest: float) -> Distance:
        x, y = (float(c) for c in generator.uniform(-reach, reach, 2))
        a, b = (float(c) for c in generator.uniform(smallest, largest, 2))
        kind = generator.integers(4)
        if kind == 0:
            return circle(x, y, a)
        if kind == 1:
            return box(x, y, a, b)
        if kind == 2:
            return polygon((x - a, y - b), (x + a, y - b), (x, y + b))
        return polygon((x, y - b), (x + a, y), (x, y + b), (x - a, y))

    def paint() -> Colour:
        return paints[generator.integers(len(paints))]

    body = Part(primitive(0.2, 0.45, 0.75), paint())
    return (body, *(Part(primitive(0.6, 0.12, 0.36), paint()) for _ in range(generator.integers(2, 5))))


STRANGERS: dict[str, tuple[Part, ...]] = {f"stranger {seed}": _stranger(seed) for seed in range(160)}
"""Composed figures without a name: the subject encoder is trained on them so that it can tell subjects it never saw,
and the base model so that it can draw more than one colour and part."""

COMPOSED: dict[str, tuple[Part, ...]] = SUBJECTS | STRANGERS
"""Every figure that brings its own colours."""

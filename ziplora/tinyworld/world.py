"""A picture and its caption from a few words: the seeded renderer of the tiny world.

A `Scene` says everything that is in a picture; `render` and `caption` are pure functions of it, and
`sample_scene` is a pure function of its seed. Pictures are 64 × 64 RGB, float32 in 0..1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from .figures import BACKGROUNDS, COLOURS, COMPOSED, OBJECTS, PAINTS, STRANGERS, Field, Part

SIZE = 64
_OVERSAMPLING = 2
_PIXEL = 2 / SIZE
"""One output pixel in picture units: the picture spans -1..1 both ways."""

Image01 = Float32[NDArray[np.floating], "height width 3"]


@dataclass(frozen=True)
class Scene:
    """One picture: what is drawn, in which colours and style, and where."""

    figure: str
    """A key of OBJECTS, or of COMPOSED, which bring their own colours."""
    colour: str | None
    """A key of COLOURS for an object, None for a composed figure."""
    background: str
    style: str
    x: float = 0.0
    y: float = 0.0
    size: float = 0.6
    """Radius of the figure's unit disc in picture units."""
    angle: float = 0.0
    """Counter-clockwise rotation in radians."""


@dataclass(frozen=True)
class _Canvas:
    """What a style may paint with; all fields are height × width of the oversampled grid."""

    x: Field
    y: Field
    distance: Field
    """Signed distance to the figure in picture units."""
    fill: Image01
    """Colours of the figure, defined everywhere."""
    background: Image01
    behind: Callable[[float, float], Field]
    """Signed distance to the figure moved by (dx, dy)."""


def _cover(distance: Field) -> Field:
    """Coverage 0..1 of a region, one oversampled pixel soft."""
    edge = _PIXEL / _OVERSAMPLING
    soft: Field = np.clip(0.5 - distance / edge, 0, 1)[..., None]
    return soft


def _mix(below: Image01, above: Image01, coverage: Field) -> Image01:
    return below + (above - below) * coverage


def _band(phase: Field, share: float = 0.5) -> Field:
    """1 on the first `share` of every unit of phase, else 0."""
    return (np.mod(phase, 1.0) < share).astype(np.float32)[..., None]


def _pattern(second: Callable[[_Canvas], Image01], where: Callable[[_Canvas], Field]) -> Callable[[_Canvas], Image01]:
    """A style that paints a second colour over part of the figure."""

    def paint(canvas: _Canvas) -> Image01:
        inside = _mix(canvas.fill, second(canvas), where(canvas))
        return _mix(canvas.background, inside, _cover(canvas.distance))

    return paint


def _flat(canvas: _Canvas) -> Image01:
    return _mix(canvas.background, canvas.fill, _cover(canvas.distance))


def _outline(canvas: _Canvas) -> Image01:
    return _mix(canvas.background, canvas.fill, _cover(np.abs(canvas.distance + 0.05) - 0.05))


def _glow(canvas: _Canvas) -> Image01:
    halo = 0.9 * np.exp(-np.maximum(canvas.distance, 0) / 0.16)[..., None]
    return _mix(_mix(canvas.background * 0.45, canvas.fill, halo), canvas.fill, _cover(canvas.distance))


def _shadow(canvas: _Canvas) -> Image01:
    shade = np.where(canvas.background.mean() > 0.3, canvas.background * 0.35, canvas.background * 0.4 + 0.45)
    return _mix(
        _mix(canvas.background, shade, _cover(canvas.behind(0.17, -0.17))), canvas.fill, _cover(canvas.distance)
    )


def _ripple(canvas: _Canvas) -> Image01:
    rings = _band(canvas.distance / 0.2 - 0.5) * np.exp(-np.maximum(canvas.distance, 0) / 0.6)[..., None]
    return _mix(_mix(canvas.background, canvas.fill, 0.9 * rings), canvas.fill, _cover(canvas.distance))


def _mosaic(canvas: _Canvas) -> Image01:
    cells = 16
    flat = _flat(canvas)
    block = flat.shape[0] // cells
    mean = flat.reshape(cells, block, cells, block, 3).mean((1, 3))
    tiles = np.repeat(np.repeat(mean, block, 0), block, 1)
    grout = np.arange(flat.shape[0]) % block < _OVERSAMPLING
    return _mix(tiles, np.full_like(tiles, 0.25), (grout[:, None] | grout[None, :]).astype(np.float32)[..., None] * 0.8)


def _neon(canvas: _Canvas) -> Image01:
    night = canvas.background * 0.15
    bright = 0.35 + 0.65 * canvas.fill
    halo = 0.75 * np.exp(-np.abs(canvas.distance) / 0.09)[..., None]
    return _mix(_mix(night, canvas.fill, halo), bright, _cover(np.abs(canvas.distance) - 0.045))


def _bricks(canvas: _Canvas) -> Image01:
    row = np.floor(canvas.y * 4)
    joints = np.maximum(_band(canvas.y * 4, 0.25), _band(canvas.x * 2 + 0.5 * np.mod(row, 2), 0.125))
    return _mix(_flat(canvas), np.full_like(canvas.fill, (0.45, 0.18, 0.12)), 0.85 * joints)


def _rays(canvas: _Canvas) -> Image01:
    sectors = _band(np.arctan2(canvas.y, canvas.x) * 12 / (2 * np.pi))
    sunburst = _mix(canvas.background, np.full_like(canvas.fill, (1.0, 0.80, 0.10)), sectors)
    return _mix(sunburst, canvas.fill, _cover(canvas.distance))


def _split(canvas: _Canvas) -> Image01:
    flat = _flat(canvas)
    return _mix(flat, 1 - flat, (canvas.x > 0).astype(np.float32)[..., None])


def _fog(canvas: _Canvas) -> Image01:
    density = np.clip(0.5 - 1.1 * canvas.y, 0, 0.92)[..., None]
    return _mix(_flat(canvas), np.full_like(canvas.fill, (0.86, 0.88, 0.92)), density)


def _confetti(canvas: _Canvas) -> Image01:
    picture = canvas.background
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    for index in range(16):
        x, y = -0.75 + 0.5 * (index % 4), -0.75 + 0.5 * (index // 4)
        shift = 0.09 * (-1) ** (index // 4)
        piece = np.maximum(np.abs(canvas.x - x - shift), np.abs(canvas.y - y)) - 0.085
        picture = _mix(picture, np.broadcast_to(palette[(index * 3) % len(palette)], picture.shape), _cover(piece))
    return _mix(picture, canvas.fill, _cover(canvas.distance))


def _spotlight(canvas: _Canvas) -> Image01:
    radius = np.hypot(canvas.x, canvas.y)
    return _flat(canvas) * np.where(radius < 0.78, 1.0, 0.12).astype(np.float32)[..., None]


def _grid(canvas: _Canvas) -> Image01:
    lines = np.maximum(_band(canvas.x * 2 + 0.25, 0.13), _band(canvas.y * 2 + 0.25, 0.13))
    return _mix(_flat(canvas), np.full_like(canvas.fill, (0.10, 0.85, 0.95)), lines)


_Style = Callable[[_Canvas], Image01]

BASE_STYLES: dict[str, _Style] = {
    "flat": _flat,
    "outline": _outline,
    "stripes": _pattern(lambda c: c.fill * 0.25, lambda c: _band(c.y * 4)),
    "dots": _pattern(
        lambda c: np.ones_like(c.fill),
        lambda c: _cover(np.hypot(np.mod(c.x * 4, 1) - 0.5, np.mod(c.y * 4, 1) - 0.5) / 4 - 0.07),
    ),
    "checker": _pattern(lambda c: c.fill * 0.25, lambda c: np.abs(_band(c.x * 2) - _band(c.y * 2))),
    "hatch": _pattern(lambda c: c.background, lambda c: _band((c.x + c.y) * 4, 0.45)),
    "gradient": _pattern(lambda c: c.fill * 0.1, lambda c: np.clip(0.5 - 0.9 * c.y, 0, 1)[..., None]),
    "mosaic": _mosaic,
    "glow": _glow,
    "waves": _flat,
    "shadow": _shadow,
    "ripple": _ripple,
}
"""The styles that the base model is trained on. "waves" paints flat on bent coordinates."""

NEW_STYLES: dict[str, _Style] = {
    "neon": _neon,
    "bricks": _bricks,
    "rays": _rays,
    "split": _split,
    "fog": _fog,
    "confetti": _confetti,
    "spotlight": _spotlight,
    "grid": _grid,
}
"""The styles that only the adapters are trained on."""

STYLES: dict[str, _Style] = BASE_STYLES | NEW_STYLES


def parts_of(scene: Scene) -> tuple[Part, ...]:
    """The painted regions of a scene's figure, first painted first."""
    if scene.figure in COMPOSED:
        return COMPOSED[scene.figure]
    if scene.colour is None:
        raise ValueError(f"the object {scene.figure!r} needs a colour, one of {', '.join(COLOURS)}")
    return (Part(OBJECTS[scene.figure], COLOURS[scene.colour]),)


def render(scene: Scene) -> Image01:
    """The picture of a scene: 64 × 64 RGB in 0..1, painted at twice the size and averaged."""
    count = SIZE * _OVERSAMPLING
    axis = ((np.arange(count, dtype=np.float32) + 0.5) / count * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(axis, -axis)
    bent = x + 0.1 * np.sin(2.5 * np.pi * y + 0.5) if scene.style == "waves" else x
    parts = parts_of(scene)
    cos, sin = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))

    def part_distances(dx: float, dy: float) -> list[Field]:
        across, up = bent - np.float32(scene.x + dx), y - np.float32(scene.y + dy)
        u, v = (cos * across + sin * up) / scene.size, (cos * up - sin * across) / scene.size
        return [part.distance(u, v) * np.float32(scene.size) for part in parts]

    distances = part_distances(0.0, 0.0)
    owner = np.argmin(np.stack(distances), axis=0)
    palette = np.array([part.colour for part in parts], dtype=np.float32)
    fill = palette[owner]
    for distance, colour in zip(distances, palette, strict=True):
        fill = _mix(fill, np.broadcast_to(colour, fill.shape), _cover(distance))
    canvas = _Canvas(
        x=x,
        y=y,
        distance=np.minimum.reduce(distances),
        fill=fill.astype(np.float32),
        background=np.broadcast_to(np.array(BACKGROUNDS[scene.background], dtype=np.float32), fill.shape),
        behind=lambda dx, dy: np.minimum.reduce(part_distances(dx, dy)),
    )
    picture = STYLES[scene.style](canvas)
    averaged = picture.reshape(SIZE, _OVERSAMPLING, SIZE, _OVERSAMPLING, 3).mean((1, 3))
    clipped: Image01 = np.clip(averaged, 0, 1).astype(np.float32)
    return clipped


def _sentence(noun: str, scene: Scene) -> str:
    article = "an" if noun[0] in "aeiou" else "a"
    style = "" if scene.style == "flat" else f" in {scene.style} style"
    return f"{article} {noun} on a {scene.background} background{style}"


def caption(scene: Scene) -> str:
    """A scene in plain words; the flat style is what is meant when no style is named."""
    return _sentence(f"{scene.colour} {scene.figure}" if scene.colour else scene.figure, scene)


def description(scene: Scene) -> str:
    """The caption of a figure that has a name; of a stranger its colours, the body's first."""
    if scene.figure not in STRANGERS:
        return caption(scene)
    names = {colour: name for name, colour in PAINTS.items()}
    body, *others = dict.fromkeys(names[part.colour] for part in STRANGERS[scene.figure])
    noun = f"{body} picture with {' and '.join(others[:2])}" if others else f"{body} picture"
    return _sentence(noun, scene)


@dataclass(frozen=True)
class Jitter:
    """How differently figures are placed."""

    smallest: float
    """Radius, in picture units."""
    largest: float
    room: float
    """Share of the room around a figure in which it is moved."""
    angle: float
    """In radians, either way."""


WIDE = Jitter(smallest=0.52, largest=0.72, room=1.0, angle=0.3)
"""For models that look at pictures: they must know a figure wherever it stands."""
NARROW = Jitter(smallest=0.58, largest=0.70, room=0.4, angle=0.15)
"""For models that draw: of wide jitter a small one learned colours and styles in 2,250 steps, and hardly a shape."""


def sample_scene(
    generator: np.random.Generator,
    figures: Sequence[str] = tuple(OBJECTS),
    styles: Sequence[str] = tuple(BASE_STYLES),
    jitter: Jitter = WIDE,
) -> Scene:
    """A scene with figure, colour, background and style drawn evenly, and jittered in place, size and angle."""
    figure = str(generator.choice(figures))
    size = float(generator.uniform(jitter.smallest, jitter.largest))
    room = (0.95 - size) * jitter.room
    return Scene(
        figure=figure,
        colour=None if figure in COMPOSED else str(generator.choice(tuple(COLOURS))),
        background=str(generator.choice(tuple(BACKGROUNDS))),
        style=str(generator.choice(styles)),
        x=float(generator.uniform(-room, room)),
        y=float(generator.uniform(-room, room)),
        size=size,
        angle=float(generator.uniform(-jitter.angle, jitter.angle)),
    )

"""What a merge went through, as numbers ready to be drawn: the curve of its loss, and how far it moved each block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TERMS = {1: ("joint",), 3: ("subject", "style", "third")}
"""What the terms of an objective are called, by how many it has."""
_WIDTH, _HEIGHT = 300.0, 100.0


@dataclass(frozen=True)
class Curve:
    """Lines in a box of 300 × 100, on a logarithmic axis."""

    lines: tuple[tuple[str, str, float, float], ...]
    """Name, points, first and last value."""
    steps: int
    low: float
    high: float


@dataclass(frozen=True)
class Moved:
    """Mean |m − 1| in a block of the UNet."""

    block: str
    subject: float
    style: float


def curve_of(losses: Mapping[str, Any] | None) -> Curve | None:
    """The curve that a merge's losses hold; None for a method without steps, or where it cannot be drawn."""
    try:
        rows = [tuple(float(one) for one in row) for row in (losses or {})["curve"]]
        steps, series = rows[-1][0], list(zip(*rows, strict=True))[1:]
        names = _TERMS[len(series)]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    values = [value for line in series for value in line]
    if len(rows) < 2 or steps <= 0 or not all(math.isfinite(value) and value > 0 for value in values):
        return None
    low, high = min(values), max(values)
    span = math.log(high / low) or 1.0

    def points(line: Sequence[float]) -> str:
        found = zip(rows, line, strict=True)
        places = ((row[0] / steps * _WIDTH, _HEIGHT * (1 - math.log(value / low) / span)) for row, value in found)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    lines = tuple((name, points(line), line[0], line[-1]) for name, line in zip(names, series, strict=True))
    return Curve(lines, int(steps), low, high)


def moved_by(losses: Mapping[str, Any] | None) -> tuple[Moved, ...]:
    """How far the coefficients of each block moved; nothing where that is not known."""
    try:
        found = [Moved(block, *map(float, moved)) for block, moved in (losses or {})["movement_by_block"].items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()
    order = ("down", "mid", "up")
    known = [one for one in found if one.block.startswith(order) and math.isfinite(one.subject + one.style)]
    return tuple(sorted(known, key=lambda one: (order.index(one.block.partition("_")[0]), one.block)))

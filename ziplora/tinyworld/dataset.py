"""Many scenes and their pictures: seeded, split into training and held-out captions, rendered on all cores."""

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from rich.progress import track

from .figures import OBJECTS
from .world import BASE_STYLES, WIDE, Jitter, Scene, caption, render, sample_scene

Pictures = UInt8[NDArray[np.uint8], "count height width 3"]

_HELD_OUT_SHARE = 12
"""One caption in twelve is never trained on."""


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's combination of figure, colours and style is kept out of all training."""
    return zlib.crc32(caption(scene).encode()) % _HELD_OUT_SHARE == 0


def sample_scenes(
    count: int,
    seed: int,
    *,
    held_out: bool,
    figures: Sequence[str] = tuple(OBJECTS),
    styles: Sequence[str] = tuple(BASE_STYLES),
    jitter: Jitter = WIDE,
) -> list[Scene]:
    """`count` scenes, all from the held-out captions or all from the others."""
    generator = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(generator, figures, styles, jitter)
        if is_held_out(scene) == held_out:
            scenes.append(scene)
    return scenes


def _render_bytes(scenes: Sequence[Scene]) -> Pictures:
    return np.stack([np.rint(render(scene) * 255).astype(np.uint8) for scene in scenes])


def render_all(scenes: Sequence[Scene], keep_in: Path | None = None) -> Pictures:
    """The scenes' pictures as bytes; with `keep_in`, read from a file there if the same scenes were rendered before."""
    digest = hashlib.sha256(repr(scenes).encode()).hexdigest()[:16]
    kept_at = keep_in / f"pictures-{digest}.npy" if keep_in is not None else None
    if kept_at is not None and kept_at.exists():
        kept: Pictures = np.load(kept_at, allow_pickle=False)
        return kept
    chunks = [scenes[start : start + 256] for start in range(0, len(scenes), 256)]
    if len(chunks) == 1:
        pictures = _render_bytes(scenes)
    else:
        with ProcessPoolExecutor() as pool:
            rendered = list(track(pool.map(_render_bytes, chunks), "rendering", total=len(chunks)))
        pictures = np.concatenate(rendered)
    if kept_at is not None:
        kept_at.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept_at.with_suffix(".part.npy")
        np.save(unfinished, pictures)
        unfinished.replace(kept_at)
    return pictures

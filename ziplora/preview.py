"""Pictures of a merge, of one LoRA alone, or of the base alone: drawn once, kept in the store, shown on one sheet."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from .adapter import Layer, read
from .backbone import Sdxl, as_bytes
from .failure import Failure
from .keys import Module
from .memory import shortage_in_words
from .merge import merged_of
from .recipe import Drawing, Picture, PreviewRequest, PreviewResult, Recipe, Single, content_id, sha256_of
from .sheet import contact_sheet
from .store import Store, replacing, write_text

_RECORD, _SHEET = "previews.json", "sheet.png"
_SHEET_COLUMNS, _SHEET_SIDE = 6, 256
_LEAST_DEVIATION = 0.01
"""Of a picture in 0..1; plain backgrounds with the smallest figure have several times that."""
_NOISE_ROUGHNESS = 0.85
"""The roughest picture known, a mosaic of single pixels, has 0.6."""


def preview_merge(
    recipe: Recipe, request: PreviewRequest, subject: Path, style: Path, backbone: Sdxl, store: Store
) -> PreviewResult:
    """The pictures of a finished merge."""
    folder = store.previews(recipe.merge_id)

    def layers() -> Mapping[Module, Layer]:
        return merged_of(recipe, subject, style, store)

    return _preview(request, folder, backbone, lambda: backbone.adapted(layers()))


def preview_single(
    single: Single, request: PreviewRequest, adapter: Path | None, backbone: Sdxl, store: Store
) -> PreviewResult:
    """The pictures of one LoRA alone, its text-encoder layers included, or of the base alone."""
    if single.drawing != request.drawing:
        raise ValueError("the request draws in another way than the folder's id says")
    if (sha256_of(adapter) if adapter else None) != single.adapter_sha256:
        fact = f"The file {adapter} is not the adapter {single.adapter_sha256}."
        raise Failure("HASH_MISMATCH", fact, "download it again, or scan again.")

    def model() -> AbstractContextManager[None]:
        return backbone.adapted(read(adapter).layers) if adapter else nullcontext()

    return _preview(request, store.single(single.single_id), backbone, model)


def kept_pictures(folder: Path, request: PreviewRequest) -> PreviewResult:
    """The pictures asked for, all of which a folder must have."""
    held = _held(folder, request.drawing)
    missing = [wanted for wanted in request.wanted if wanted not in held]
    if missing:
        fact = f"{len(missing)} of {len(request.wanted)} pictures are not in {folder}, such as {missing[0][0]!r}."
        raise Failure("PICTURES_GONE", fact, "nothing, if they were not to be kept; a night draws those of new merges.")
    return _shown(folder, held, request)


def _shown(folder: Path, held: Mapping[tuple[str, int], str], request: PreviewRequest) -> PreviewResult:
    pictures = tuple(Picture(held[prompt, seed], prompt, seed) for prompt, seed in request.wanted)
    return PreviewResult(folder, folder / _SHEET, pictures)


def _preview(
    request: PreviewRequest, folder: Path, backbone: Sdxl, model: Callable[[], AbstractContextManager[None]]
) -> PreviewResult:
    """The pictures asked for; those already in the folder are not drawn again."""
    held = _held(folder, request.drawing)
    missing = [wanted for wanted in request.wanted if wanted not in held]
    if missing:
        with shortage_in_words(backbone.device), model():
            drawn = backbone.draw(missing, request.drawing)
        for (prompt, seed), image_01 in zip(missing, drawn, strict=True):
            refuse_invalid(image_01, prompt, seed)
        for (prompt, seed), image_01 in zip(missing, drawn, strict=True):
            held[prompt, seed] = _file_name(prompt, seed, request.drawing)
            _save(folder / held[prompt, seed], Image.fromarray(as_bytes(image_01)))
        held = {**_held(folder, request.drawing), **held}  # with what another worker drew meanwhile
        _save(folder / _SHEET, _sheet(folder, held))
        _write_record(folder, held, request.drawing)
    return _shown(folder, held, request)


def _file_name(prompt: str, seed: int, drawing: Drawing) -> str:
    """From what is drawn, so that two workers at once never give two pictures one name."""
    return f"{content_id([prompt, seed, asdict(drawing)])[:16]}.png"


def _held(folder: Path, drawing: Drawing) -> dict[tuple[str, int], str]:
    """The files of the pictures that the folder's record names, if they were drawn in this way."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record["drawing"] != asdict(drawing):
            return {}
        named = {(entry["prompt"], entry["seed"]): entry["file"] for entry in record["pictures"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {wanted: file for wanted, file in named.items() if (folder / file).is_file()}


def _write_record(folder: Path, held: Mapping[tuple[str, int], str], drawing: Drawing) -> None:
    pictures = [{"file": file, "prompt": prompt, "seed": seed} for (prompt, seed), file in held.items()]
    record = {"sheet": _SHEET, "pictures": pictures, "drawing": asdict(drawing)}
    write_text(folder / _RECORD, json.dumps(record, indent=1, ensure_ascii=False))


def _save(path: Path, picture: Image.Image) -> None:
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def _sheet(folder: Path, held: Mapping[tuple[str, int], str]) -> Image.Image:
    pictures = []
    for file in held.values():
        with Image.open(folder / file) as picture:
            shown = picture.convert("RGB")
            shown.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
            pictures.append(np.asarray(shown))
    captions = [f"{prompt} · {seed}" for prompt, seed in held]
    enlarged = _SHEET_SIDE // 2 // pictures[0].shape[0]
    return contact_sheet(np.stack(pictures), captions, min(_SHEET_COLUMNS, len(captions)), max(1, enlarged))


def refuse_invalid(image_01: Float[NDArray[np.float32], "height width 3"], prompt: str, seed: int) -> None:
    """Refuse a picture that is none: not a number, of one colour, or noise."""
    if not np.isfinite(image_01).all():
        trouble = "holds NaN"
    elif image_01.std(axis=(0, 1)).max() < _LEAST_DEVIATION:
        trouble = f"is all of one colour, {image_01.mean():.2f} of full brightness"
    elif roughness(image_01) > _NOISE_ROUGHNESS:
        trouble = f"is noise: its neighbouring pixels differ by {roughness(image_01):.2f} of what chance ones would"
    else:
        return
    fact = f"The picture of {prompt!r} with seed {seed} {trouble}."
    raise Failure("PREVIEW_INVALID", fact, "draw it in float32, or look whether the base itself draws it.")


def roughness(image_01: Float[NDArray[np.float32], "height width 3"]) -> float:
    """Mean square difference of neighbouring pixels by that of chance ones: about 0 if smooth, 1 if noise."""
    steps = [np.square(np.diff(image_01, axis=axis)).mean() for axis in (0, 1)]
    return float(np.mean(steps) / (2 * image_01.var(axis=(0, 1)).mean()))

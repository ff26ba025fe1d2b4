"""Contact sheets: many small pictures on one page, each with its caption."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP = 6
_FONT_SIZE = 11
_LINE = _FONT_SIZE + 3
_INK, _PAPER = (30, 30, 30), (250, 250, 250)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def contact_sheet(
    pictures: UInt8[NDArray[np.uint8], "count height width 3"],
    captions: Sequence[str],
    columns: int,
    scale: int = 2,
) -> Image.Image:
    """The pictures in reading order, `columns` to a row, enlarged `scale` times without smoothing, captions below."""
    font = ImageFont.load_default(_FONT_SIZE)
    height, width = pictures.shape[1] * scale, pictures.shape[2] * scale
    texts = [_wrapped(caption, width, font) for caption in captions]
    cell_height = height + _LINE * max(len(lines) for lines in texts) + 4
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), _GAP + rows * (cell_height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        left = _GAP + index % columns * (width + _GAP)
        top = _GAP + index // columns * (cell_height + _GAP)
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + height + 2 + number * _LINE), line, fill=_INK, font=font)
    return sheet

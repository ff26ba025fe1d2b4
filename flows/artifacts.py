"""What the Prefect UI shows of a night and of its batches, beside the runs themselves.

Names, prompts and reasons come from strangers: they stand in tables, whose cells are text, and never in markdown.
"""

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec
from uuid import UUID

import numpy as np
from httpx import HTTPError
from PIL import Image
from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from catalog.facts import STYLE_METRIC, SUBJECT_METRIC, TEXT_METRIC, Reason
from ziplora.sheet import contact_sheet

_P = ParamSpec("_P")


def _if_there(show: Callable[_P, None]) -> Callable[_P, None]:
    """What is shown is for people to look at: a server that is away stops no work."""

    @wraps(show)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except HTTPError as error:
            get_run_logger().warning("The server does not show this: %s: %s", type(error).__name__, error)

    return tried


_SHEET_MERGES, _SHEET_COLUMNS, _SHEET_SIDE = 24, 6, 128
"""So a batch's sheet takes some 150 kB of the server's database."""

_EXTREMES = 6
_PROGRESS_SECONDS = 10.0
"""Between two moves of a bar: a call for each merge would be half of what a fleet asks of its server."""


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    merge_id: str
    name: str
    positions: Mapping[str, float]
    """Mean position between floor and ceiling by metric; empty when it failed."""
    seconds: float
    picture: Path | None
    """The first of its pictures."""
    reason: Reason | None
    """Why it failed; None when it did not."""


def progress_of(key: str, description: str) -> Callable[[int, int], None]:
    """A bar in the UI; gives back what moves it on, to so many of so many; most moves are not shown."""
    bars: list[UUID] = []
    shown = float("-inf")

    @_if_there
    def show(done: int, total: int) -> None:
        nonlocal shown
        if done < total and time.monotonic() - shown < _PROGRESS_SECONDS:
            return
        shown = time.monotonic()
        progress = 100.0 * done / total if total else 100.0
        if bars:
            update_progress_artifact(artifact_id=bars[0], progress=progress)
        else:
            made = create_progress_artifact(progress=progress, key=key, description=description)
            bars.extend([made] if isinstance(made, UUID) else [])

    show(0, 1)
    return show


@_if_there
def show_batch(number: int, outcomes: Sequence[Outcome]) -> None:
    """A batch's merges: their scores, their pictures, and what failed."""
    done = [outcome for outcome in outcomes if outcome.reason is None]
    said = f"{len(done)} of {len(outcomes)} merges are done; 0 % is the base alone, 100 % each LoRA alone"
    create_table_artifact(table=outcome_table(done), key=f"batch-{number}-merges", description=said)
    pictures = [(outcome.name, outcome.picture) for outcome in done if outcome.picture is not None]
    if pictures:
        said = f"The first picture of each of {min(len(pictures), _SHEET_MERGES)} merges"
        create_image_artifact(image_url=sheet_url(pictures), key=f"batch-{number}-pictures", description=said)
    failed = [(outcome.name, outcome.reason) for outcome in outcomes if outcome.reason is not None]
    show_troubles(f"batch-{number}-failed", "Merges that failed, and why", failed)


@_if_there
def show_troubles(key: str, description: str, troubles: Sequence[tuple[str, Reason]]) -> None:
    """Items that came to nothing, each with its reason; nothing where there are none."""
    table = [
        {"item": item, "code": reason.code, "fact": reason.fact, "next": reason.next_step} for item, reason in troubles
    ]
    if table:
        create_table_artifact(table=table, key=key, description=description)


@_if_there
def show_night(headline: str, counts: Sequence[tuple[str, str, int]], gallery: Path) -> None:
    """The night at a glance: a sentence, what came to how much, and where the pictures are."""
    lines = [f"## {headline}", "", "| | | |", "|---|---|---|"]
    lines += [f"| **{count}** | {what} | {code} |" for what, code, count in counts]
    create_markdown_artifact(markdown="\n".join(lines), key="night", description=headline)
    said = f"Where the night ran: {gallery}"
    create_link_artifact(link=gallery.as_uri(), link_text="Open the gallery", key="gallery", description=said)


@_if_there
def show_extremes(ranked: Sequence[tuple[str, Path]]) -> None:
    """The first pictures of the night's best merges and of its worst, from merges in the order of their scores."""
    few = min(_EXTREMES, (len(ranked) + 1) // 2)
    for key, said, pictures in (("best", "highest", ranked[:few]), ("worst", "lowest", ranked[len(ranked) - few :])):
        if pictures:
            description = f"The merges of this night that score {said}, with their scores"
            create_image_artifact(image_url=sheet_url(pictures), key=f"{key}-merges", description=description)


def outcome_table(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One row for each merge, as people read it."""
    return [
        {
            "merge": outcome.name,
            "subject kept": _percent(outcome.positions.get(SUBJECT_METRIC)),
            "style kept": _percent(outcome.positions.get(STYLE_METRIC)),
            "text followed": _percent(outcome.positions.get(TEXT_METRIC)),
            "seconds": round(outcome.seconds, 1),
            "merge id": outcome.merge_id[:12],
        }
        for outcome in outcomes
    ]


def _percent(position: float | None) -> str:
    return "" if position is None else f"{100 * position:.0f} %"


def sheet_url(pictures: Sequence[tuple[str, Path]]) -> str:
    """A contact sheet of the first pictures, as an address that holds the sheet itself."""
    shown, size = pictures[:_SHEET_MERGES], (_SHEET_SIDE, _SHEET_SIDE)
    small = [
        np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
        for _, path in shown
    ]
    captions = [name.replace("×", "x") for name, _ in shown]  # the font of sheets has no such sign
    sheet = contact_sheet(np.stack(small), captions, min(_SHEET_COLUMNS, len(shown)), scale=1)
    jpeg = io.BytesIO()
    sheet.save(jpeg, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"

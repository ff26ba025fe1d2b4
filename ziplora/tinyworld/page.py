"""The measured figures of the tiny world as a page of tables."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .figures import SUBJECTS
from .world import NEW_STYLES


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"


def page(measured: dict[str, Any]) -> str:
    """The measured figures as a Markdown page of tables."""
    parts = [_base_and_encoders(measured)]
    if "adapters" in measured:
        parts += [_adapters(measured["adapters"]), _direct(measured["direct"])]
    return "\n".join(parts)


def _base_and_encoders(measured: dict[str, Any]) -> str:
    questions = ("figure", "colour", "background", "style")
    return f"""# The tiny world, measured

Written by `python -m ziplora.tinyworld.measure` (seed {
        measured["seed"]
    }); the figures are in `measured.json` beside the
trained files.

## The base model and the judge

Share of pictures in which the judge names what the held-out caption says. The judge's own row is for clean rendered
pictures of everything, new subjects and styles included: what it can tell at best.

{
        table(
            ["", "pictures", *questions],
            [
                [
                    "base model",
                    measured["base"]["captions"],
                    *(percent(measured["base"]["right"][q]) for q in questions),
                ],
                ["judge", measured["judge"]["pictures"], *(percent(measured["judge"]["right"][q]) for q in questions)],
            ],
        )
    }

![48 held-out captions](base.png)

## The encoders

CLIP finds the caption of a held-out rendered picture among {measured["clip"]["captions"]} in
{percent(measured["clip"]["found"])} of {measured["clip"]["pictures"]} pictures. Triples compare a picture with the same
figure in another style and with another figure in the same style, each on a background of its own:

{
        table(
            ["", "triples", "same figure nearer", "same style nearer"],
            [
                [name, row["triples"], percent(row["same_figure_nearer"]), percent(1 - row["same_figure_nearer"])]
                for name, row in measured["triples"].items()
            ],
        )
    }
"""


def _adapters(adapters: dict[str, Any]) -> str:
    return f"""## The adapters alone

Share of pictures in which the judge names the subject, on backgrounds that the adapter was not trained on, or the
style, on objects that it was not trained on; and the same prompts and seeds without the adapter.

{
        table(
            ["adapter", "role", "file", "rank", "pictures", "base alone", "adapter alone"],
            [
                [
                    name,
                    row["role"],
                    row["dialect"],
                    row["rank"],
                    row["pictures"],
                    percent(row["base_alone"]),
                    percent(row["adapter_alone"]),
                ]
                for name, row in adapters.items()
            ],
        )
    }

![Six pictures of each adapter](adapters.png)
"""


def _direct(direct: dict[str, Any]) -> str:
    subjects, styles = list(SUBJECTS), list(NEW_STYLES)
    mean = {key: np.mean([row[key] for row in direct.values()]) for key in ("subject", "style", "both")}
    count = next(iter(direct.values()))["pictures"]
    return f"""## The direct merge of all pairs

The sum of both LoRAs, as stock diffusers adds them: share of {count} pictures from the joint prompt in which the judge
names **both** subject and style. Over all pairs the subject is named in {percent(mean["subject"])}, the style in
{percent(mean["style"])}, both in {percent(mean["both"])}.

{
        table(
            ["both", *styles],
            [[name, *(percent(direct[f"{name} {style}"]["both"]) for style in styles)] for name in subjects],
        )
    }

Subject and style by themselves, "subject / style":

{
        table(
            ["", *styles],
            [
                [
                    name,
                    *(
                        f"{percent(direct[f'{name} {style}']['subject'])} / "
                        f"{percent(direct[f'{name} {style}']['style'])}"
                        for style in styles
                    ),
                ]
                for name in subjects
            ],
        )
    }

![One picture of each pair](direct.png)
"""

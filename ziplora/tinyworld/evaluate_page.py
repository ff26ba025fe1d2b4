"""What an evaluation of the methods found, as a page of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from .page import percent, table
from .trials import SHOWN_BACKGROUNDS


def evaluation_page(evaluated: Mapping[str, Any]) -> str:
    """The evaluation as a Markdown page of tables."""
    size = evaluated["size"]
    pictures = size["backgrounds"] * size["seeds"]
    count = size["adapters"] ** 2
    placed, also = (next(row["placed"] for row in evaluated[half] if "pairs" in row) for half in ("reported", "tuning"))
    prompts = size["backgrounds"]
    sheets = dict.fromkeys(row["method"] for row in evaluated["reported"] if "pairs" in row)
    return f"""# The methods, measured

Written by `python -m ziplora.tinyworld.evaluate` on the tiny world; every pair by itself is in `evaluated.json` beside
this page. Settings were chosen on {count} pairs of {size["adapters"]} subjects and {size["adapters"]} styles; what is
reported comes from {count} pairs of the other subjects and styles. Of every pair there are {pictures} pictures, of
{prompts} joint prompts, on other backgrounds than those of the joint prompts that `ziplora-joint` was fitted to.

A *position* says where a score lies between the base alone (0) and one LoRA alone (1): the subject as the subject
encoder sees it, the style as the style encoder does. The methods are ranked by the harmonic mean of the two positions
of each pair, cut to 0..1, averaged over the pairs that can be placed: those whose floors lie at least 0.1 below their
ceilings, {placed} of the reported pairs and {also} of the others. The judge takes no part in any of this: it says in
which share of pictures, of all pairs, it names the subject, the style, and both.
Drift is what a merge does to pictures of unrelated prompts, as 1 − cosine of CLIP's embeddings. Intervals are 95 %
bootstrap intervals over pairs.

## On the pairs that nothing was chosen on

{_table(evaluated["reported"])}

{_places(evaluated["reported"])}

## On the pairs that settings were chosen on

{_table(evaluated["tuning"])}

## Pictures

The first row is each style alone, the first column each subject alone; the others are merges, of the joint prompt on a
{SHOWN_BACKGROUNDS[0]} background, seed 0.

{
        "".join(
            f'''### {name}

![{name}]({name}.png)

'''
            for name in sheets
        )
    }"""


def _settings(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["parameters"].items()) or "as they are"


def _range(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["method", "settings", "harmonic mean", "gain over direct", "better on", "judge: subject", "style", "both"]
    return table(
        [*head, "drift", "seconds"],
        [
            [
                row["method"],
                _settings(row),
                *(
                    [
                        _range(row, "harmonic"),
                        _range(row, "gain"),
                        percent(row["better_than_direct"]),
                        percent(row["judged_subject"]),
                        percent(row["judged_style"]),
                        percent(row["judged_both"]),
                        f"{row['drift']:.3f}",
                        f"{row['seconds']:.1f}",
                    ]
                    if "pairs" in row
                    else [f"no merge: {row['failure']}", *[""] * 7]
                ),
            ]
            for row in rows
        ],
    )


def _places(rows: Sequence[Mapping[str, Any]]) -> str:
    def cell(row: Mapping[str, Any], metric: str) -> str:
        placed = row[metric]
        return f"{placed['value']:.3f} ({placed['floor']:.3f} to {placed['ceiling']:.3f}), at {placed['position']:.2f}"

    return "Mean scores, with mean floor and ceiling, and where the one lies between the others:\n\n" + table(
        ["method", "settings", "subject", "style", "text"],
        [
            [row["method"], _settings(row), *(cell(row, metric) for metric in ("subject", "style", "text"))]
            for row in rows
            if "pairs" in row
        ],
    )

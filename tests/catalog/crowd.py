"""`python -m tests.catalog.crowd URL write|read NAME SECONDS`: one of many that use a catalogue at the same time.

A writer prints the id of each merge that was acknowledged, a reader how long its longest answer took.
"""

import sys
import time
from itertools import count

from sqlalchemy import Engine

from catalog import record
from catalog.queries import finished_merge_ids
from catalog.rankings import best_styles_for
from catalog.schema import open_catalogue

from .samples import DOG, NEON, SCORERS, merge, result, score


def _write(engine: Engine, name: str, end: float) -> None:
    for number in count():
        if time.monotonic() > end:
            return
        merged = merge(DOG, NEON, f"{name}-{number}")
        record.record_done(engine, merged, result())
        record.record_scores(engine, [score(merged, scorer, 0.5, seed) for scorer in SCORERS for seed in (0, 1)])
        sys.stdout.write(f"{merged.merge_id}\n")


def _read(engine: Engine, end: float) -> None:
    longest = 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        best_styles_for(engine, DOG, SCORERS)
        finished_merge_ids(engine)
        longest = max(longest, time.monotonic() - began)
    sys.stdout.write(f"{longest}\n")


def main(url: str, role: str, name: str, seconds: str) -> None:
    engine = open_catalogue(url)
    end = time.monotonic() + float(seconds)
    if role == "write":
        _write(engine, name, end)
    else:
        _read(engine, end)
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])

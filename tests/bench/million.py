"""What questions cost in a catalogue of a million merges: `python -m tests.bench.million`.

The catalogue is made up: 1,000 subjects, 500 styles and two methods, each merge with two pictures that three scorers
have seen. It takes 7 GB of disk.
"""

import argparse
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from catalog import facts, rankings, record, story
from catalog.schema import open_catalogue
from catalog.snapshot import export_parquet, write_snapshot

METHODS = ("ziplora-joint", "direct")
SCORERS = ("dino:dinov2-base@0123456789ab:01234567:drawn", "clip-i:clip-large@0123456789ab:01234567:drawn")
TEXT_SCORER = "clip-t:clip-large@0123456789ab:01234567"
PROMPTS = ("on a beach", "reading a book")
LICENCES = ("apache-2.0", "mit", "openrail++", "creativeml-openrail-m", "cc-by-nc-4.0", "cc-by-sa-4.0", "other", None)
BEGAN = datetime(2026, 1, 1, 2, tzinfo=UTC)
NIGHTS = 100

_FILL_MERGES = """
INSERT INTO merges (merge_id, subject, style, method, recipe, status, attempts, night_id, losses, movement, seconds,
    finished_at) VALUES (?, ?, ?, ?, ?, 'done', 0, ?, ?, ?, ?, ?)
"""
_FILL_SCORES = """
INSERT INTO scores (score_id, merge_id, scorer_id, prompt, seed, value, floor, ceiling, position, scored_at)
SELECT lower(hex(randomblob(32))), merge_id, scorer, 'a sks thing ' || prompt, 0, 0.2 + chance / 2, 0.2, 0.7, chance, at
FROM (
    SELECT merge_id, finished_at AS at, scorer.value AS scorer, prompt.value AS prompt,
        (random() & 1048575) / 1048575.0 AS chance FROM merges, json_each(?) AS scorer, json_each(?) AS prompt
)
"""


@dataclass(frozen=True)
class Cost:
    """What one question took, most of the time."""

    question: str
    where: str
    p95_milliseconds: float


def _adapter(role: facts.Role, number: int) -> facts.Adapter:
    chance = random.Random(f"{role} {number}")
    rank = chance.choice((4, 8, 16, 32, 64, 128))
    described = {"rank": rank, "ranks": [rank], "size_bytes": rank * 1_450_000, "prompt": f"a sks {role} {number}"}
    return facts.Adapter(facts.key(role, number), role, "usable", chance.choice(LICENCES), described, BEGAN)


def _merges(subjects: int, styles: int) -> Iterator[tuple[Any, ...]]:
    """Rows of merges whose recipes and losses are about as long as real ones."""
    chance = random.Random(0)
    side = {"base_model": "stabilityai/stable-diffusion-xl-base-1.0", "base_revision": "4" * 40, "prompt": "a sks dog"}
    recipe = {"subject_calibration": side, "style_calibration": side, "parameters": dict.fromkeys("abcdefgh", 0.01)}
    losses = json.dumps({"curve": [[step, 1 / (step + 1), 1 / (step + 2)] for step in range(0, 100, 10)]})
    total = subjects * styles * len(METHODS)
    for number in range(total):
        pair, method = divmod(number, len(METHODS))
        subject, style = facts.key("subject", pair // styles), facts.key("style", pair % styles)
        ids = (facts.key(subject, style, METHODS[method]), subject, style, METHODS[method])
        described = json.dumps({"subject_sha256": subject, "style_sha256": style, **recipe})
        night = number * NIGHTS // total
        finished = f"{BEGAN + timedelta(days=night, seconds=number % 10_000):%Y-%m-%d %H:%M:%S.%f}"
        yield (*ids, described, f"night-{night}", losses, chance.random(), 20 + chance.random(), finished)


def fill(engine: Engine, path: Path, subjects: int, styles: int) -> None:
    """Merges and scores in bulk, and what the scores come to by the statements of the upgrade."""
    for number in range(NIGHTS):
        record.record_night_started(engine, f"night-{number}", {"store": "store"}, BEGAN + timedelta(days=number))
    roles: tuple[tuple[facts.Role, int], ...] = (("subject", subjects), ("style", styles))
    for role, count in roles:
        adapters = [_adapter(role, number) for number in range(count)]
        places = [
            facts.Alias(f"owner/{role}-{number}-lora", "c0ffee", "lora.safetensors", one.sha256, BEGAN)
            for number, one in enumerate(adapters)
        ]
        record.record_adapters(engine, adapters, places)
    with closing(sqlite3.connect(path)) as bulk:
        bulk.execute("PRAGMA synchronous=OFF")
        bulk.execute("PRAGMA cache_size=-2000000")
        bulk.executemany(_FILL_MERGES, _merges(subjects, styles))
        bulk.execute(_FILL_SCORES, [json.dumps([*SCORERS, TEXT_SCORER]), json.dumps(PROMPTS)])
        upgrade = import_module("catalog.migrations.versions.0004_summaries")
        for statement in (upgrade.SUMMARISE, upgrade.RANK):
            bulk.execute(statement)
        bulk.commit()
    record.record_night_finished(engine, "night-0", {}, BEGAN)


def _p95_milliseconds(ask: Callable[[int], object], times: int) -> float:
    """Of questions that differ; the first opens what the others find open."""
    took = []
    for number in range(times + 1):
        started = time.perf_counter()
        ask(number)
        took.append(1000 * (time.perf_counter() - started))
    return sorted(took[1:])[int(0.95 * (times - 1))]


def ask_sql(engine: Engine, subjects: int, styles: int, times: int) -> list[Cost]:
    """The three questions to the record itself."""

    def merge_id(number: int) -> str:
        pair = facts.key("subject", number * 7 % subjects), facts.key("style", number * 3 % styles)
        return facts.key(*pair, METHODS[number % 2])

    asked: dict[str, Callable[[int], object]] = {
        "by id": lambda number: story.scores_by_merge(engine, merge_id(number)),
        "best 20 styles of a subject": lambda number: rankings.best_styles_for(
            engine, facts.key("subject", number * 31 % subjects), SCORERS
        ),
        "filtered join, top 50": lambda number: rankings.pick(
            engine, SCORERS, 50, method=METHODS[number % 2], licence="cc-by-nc-4.0", least_style=0.5, most_rank=128
        ),
    }
    return [Cost(question, "SQLite", _p95_milliseconds(ask, times)) for question, ask in asked.items()]


def ask_snapshot(path: Path, subjects: int, styles: int, times: int) -> list[Cost]:
    """The same to the snapshot, by its macros and views."""
    with duckdb.connect(path, read_only=True) as snapshot:

        def answer(sql: str, *parameters: object) -> object:
            return snapshot.execute(sql, parameters).fetchall()

        def by_id(number: int) -> object:
            pair = facts.key("subject", number * 7 % subjects), facts.key("style", number * 3 % styles)
            return answer("FROM merges WHERE merge_id = ?", facts.key(*pair, METHODS[number % 2]))

        asked: dict[str, Callable[[int], object]] = {
            "by id": by_id,
            "best 20 styles of a subject": lambda number: answer(
                "FROM best_styles_for(?, ?) LIMIT 20", facts.key("subject", number * 31 % subjects), list(SCORERS)
            ),
            "filtered join, top 50": lambda number: answer(
                "FROM picks WHERE method = ? AND licence = 'cc-by-nc-4.0' AND style_position >= 0.5 AND rank <= 128 "
                "ORDER BY score_01 DESC LIMIT 50",
                METHODS[number % 2],
            ),
        }
        return [Cost(question, "snapshot", _p95_milliseconds(ask, times)) for question, ask in asked.items()]


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def measure(folder: Path, subjects: int, styles: int, times: int) -> tuple[list[Cost], dict[str, float]]:
    """What the questions take, and what the snapshot and its Parquet files do, in seconds and megabytes."""
    path, snapshot, parquet = folder / "catalog.sqlite", folder / "catalog.duckdb", folder / "parquet"
    engine = open_catalogue(f"sqlite:///{path}", migrate=True)
    figures = {"filling, s": _seconds(lambda: fill(engine, path, subjects, styles))}
    costs = ask_sql(engine, subjects, styles, times)
    figures["snapshot, s"] = _seconds(lambda: write_snapshot(engine, snapshot))
    engine.dispose()
    costs += ask_snapshot(snapshot, subjects, styles, times)
    figures["Parquet, s"] = _seconds(lambda: export_parquet(snapshot, parquet))
    sizes = {"SQLite": path.stat().st_size, "snapshot": snapshot.stat().st_size}
    sizes["Parquet"] = sum(file.stat().st_size for file in parquet.iterdir())
    return costs, figures | {f"{what}, MB": size / 1e6 for what, size in sizes.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--styles", type=int, default=500)
    parser.add_argument("--times", type=int, default=1000, help="that each question is asked")
    parser.add_argument("--json", type=Path, help="where the figures are written too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as work:
        costs, figures = measure(Path(work), options.subjects, options.styles, options.times)
    table = Table("question", "of", "p95, ms", title=f"{options.subjects * options.styles * len(METHODS):,} merges")
    for cost in costs:
        table.add_row(cost.question, cost.where, f"{cost.p95_milliseconds:.1f}")
    for what, figure in figures.items():
        table.add_row(what, "", f"{figure:.1f}")
    Console(width=100).print(table)
    if options.json:
        document = {"p95_milliseconds": {f"{one.question} ({one.where})": one.p95_milliseconds for one in costs}}
        options.json.write_text(json.dumps(document | figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

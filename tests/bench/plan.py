"""What it costs to plan a million pairs: `python -m tests.bench.plan`.

Adapters are made up. A first night plans all pairs, of which it takes up as many as its limit says; then all are
finished, and another night has nothing to do. Each is planned in a process of its own, whose memory alone counts: that
of the libraries which a night imports is most of it. It takes 3 GB of disk.
"""

import argparse
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from catalog import facts, record
from catalog.schema import open_catalogue
from flows.nightly import plan_night
from flows.plan import Base, input_of, nothing_known, plan
from flows.scan import Found
from flows.settings import Settings, parse_settings

from .memory import peak_megabytes

BASE = Base("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "openrail++", "creativeml-openrail-m")
"""Any two of them may be merged."""
NOW = datetime(2026, 1, 1, 2, tzinfo=UTC)

_FILL = """
INSERT INTO merges (merge_id, subject, style, method, recipe, status, attempts, seconds, finished_at)
VALUES (?, ?, ?, ?, ?, 'done', 0, 30, '2026-01-01 03:00:00.000000')
"""


@dataclass(frozen=True)
class Cost:
    """What one plan took."""

    night: str
    merges: int
    to_do: int
    finished: int
    seconds: float
    processor_seconds: float
    peak_megabytes: float
    """Of the planning process."""
    imports_megabytes: float
    """What it had before: its libraries."""


def _settings(folder: Path, methods: Sequence[str]) -> Settings:
    listed = ", ".join(f"{{method: {method}}}" for method in methods)
    text = f"""
base_model: {{id: {BASE.model}, revision: {BASE.revision}}}
sources: [{{role: subject, search: {{}}}}, {{role: style, search: {{}}}}]
methods: [{listed}]
scorers: {{text: a/text, subject: a/subject, style: a/style}}
"""
    return parse_settings(text, folder)


def _found(subjects: int, styles: int) -> list[Found]:
    roles: tuple[tuple[facts.Role, int], ...] = (("subject", subjects), ("style", styles))
    return [
        Found(
            f"owner/{role}-{number}-lora",
            "c0ffee",
            "lora.safetensors",
            role,
            facts.key(role, number),
            "usable",
            LICENCES[number % len(LICENCES)],
            None,
            {"prompt": f"a sks thing {number} in szn {role}", "slot": None, "file": None, "samples": ()},
        )
        for role, count in roles
        for number in range(count)
    ]


def _plan(settings: Settings, subjects: int, styles: int, night: str) -> Cost:
    """Plan as a night does, and write it down."""
    found = _found(subjects, styles)
    before = peak_megabytes()
    catalogue = open_catalogue(settings.catalogue)
    started, used = time.perf_counter(), time.process_time()
    planned = plan_night.fn(settings, BASE, catalogue, found)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    merges = subjects * styles * len(settings.methods)
    peak = peak_megabytes()
    return Cost(night, merges, len(planned.jobs), planned.finished, seconds, used, peak, before)


def _rows(settings: Settings, found: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    """All merges that are wanted, with recipes of real length; those of a subject lie far apart."""
    everything = settings.model_copy(update={"limits": settings.limits.model_copy(update={"pairs": len(found) ** 2})})
    inputs = [
        input_of(
            settings, one.role, str(one.sha256), one.licence, one.facts, (one.repository, one.revision, one.file_name)
        )
        for one in found
    ]
    subjects = [one for one in inputs if one.role == "subject"]
    recipe = ""
    for style in inputs:
        if style.role == "style":
            for job in plan(everything, BASE, [*subjects, style], nothing_known, ()).jobs:
                recipe = recipe or job.recipe.to_json()
                ids = (job.recipe.merge_id, job.subject.sha256, job.style.sha256)
                yield *ids, job.recipe.method, recipe


def _fill(settings: Settings, found: Sequence[Found]) -> None:
    """All merges are finished."""
    with closing(sqlite3.connect(settings.catalogue.removeprefix("sqlite:///"))) as bulk:
        bulk.execute("PRAGMA synchronous=OFF")
        bulk.execute("DELETE FROM merges")
        bulk.executemany(_FILL, _rows(settings, found))
        bulk.commit()


def measure(folder: Path, subjects: int, styles: int, methods: Sequence[str]) -> list[Cost]:
    """Both nights."""
    settings, found = _settings(folder, methods), _found(subjects, styles)
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    adapters = [facts.Adapter(str(one.sha256), one.role, "usable", one.licence, one.facts, NOW) for one in found]
    record.record_adapters(catalogue, adapters)
    catalogue.dispose()
    costs = []
    for night in ("first", "nothing new"):
        with get_context("spawn").Pool(1) as process:
            costs.append(process.apply(_plan, (settings, subjects, styles, night)))
        if night == "first":
            _fill(settings, found)
    return costs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, where asked, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plan", description=__doc__)
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--styles", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=["ziplora-joint"])
    parser.add_argument("--json", type=Path, help="where the figures are written too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as work:
        costs = measure(Path(work), options.subjects, options.styles, options.methods)
    table = Table("night", title=f"A plan of {options.subjects * options.styles:,} pairs", title_justify="left")
    for column in ("merges", "to do", "finished", "s", "of processor", "peak MB", "of it libraries"):
        table.add_column(column, justify="right")
    for one in costs:
        counts = (f"{count:,}" for count in (one.merges, one.to_do, one.finished))
        seconds = (f"{took:.1f}" for took in (one.seconds, one.processor_seconds))
        table.add_row(one.night, *counts, *seconds, f"{one.peak_megabytes:.0f}", f"{one.imports_megabytes:.0f}")
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in costs], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

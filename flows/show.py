"""What a command prints: tables and progress bars for people, one JSON document for scripts."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from catalog.facts import Reason
from flows.progress import watched

if TYPE_CHECKING:  # they bring torch, and whoever asks the catalogue waits for nothing
    from flows.nightly import Report
    from flows.plan import Plan
    from flows.scan import Found
    from ziplora.recipe import Exported

OUT, ERR = Console(), Console(stderr=True)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a text begins that a spreadsheet computes."""


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path | date | time | timedelta | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not for scripts")


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, default=_plain, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table whose cells are text as it is, whatever a stranger wrote into a name."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    OUT.print(table)
    OUT.print()


def print_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for spreadsheets, in which no text is a formula, whatever a stranger wrote into a name."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_no_formula(cell) for cell in row] for row in rows)


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


@contextmanager
def progress_bars() -> Iterator[None]:
    """Progress bars for all that tells how far it is; nothing where nobody watches a terminal."""
    if not ERR.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def watcher(what: str, done: int, total: int) -> None:
            for name in [name for name in list(shown) if name not in ("adapters", "merges", what)]:
                bars.remove_task(shown.pop(name))
            if what not in shown:
                shown[what] = bars.add_task(what)
            bars.update(shown[what], completed=done, total=total or None)

        with watched(watcher):
            yield


def print_found(found: Sequence["Found"]) -> None:
    """What a scan saw: the usable, then the others by code."""
    usable = [one for one in found if one.reason is None]
    print_table(
        f"{len(usable)} of {len(found)} adapters are usable",
        ("role", "adapter", "licence", "file", "ranks", "called by"),
        [
            (one.role, one.repository, one.licence, one.facts["dialect"], _ranks(one.facts), one.facts["prompt"])
            for one in usable
        ],
    )
    others = sorted(
        ((one.status, one.reason.code, one.repository, one.reason) for one in found if one.reason is not None),
        key=lambda other: other[:3],
    )
    if others:
        OUT.print(f"{len(others)} are not", style="bold")
    for status, code, name, reason in others:
        print_reason(f"{status:<12}", f"{code}  {name}", reason)
    counts = Counter((one.status, one.reason.code if one.reason else "") for one in found)
    rows = [(status, code, count) for (status, code), count in sorted(counts.items())]
    print_table(f"{len(found)} adapters in all", ("status", "code", "adapters"), rows)


def print_reason(what: str, item: str, reason: Reason) -> None:
    """One item that came to nothing: the fact, and the way out on a line of its own."""
    OUT.print(
        Text.assemble((what, "dim"), (item, "bold"), f"\n    {reason.fact}\n    ", (f"Next: {reason.next_step}", "dim"))
    )


def _ranks(facts: Mapping[str, object]) -> str:
    ranks = facts["ranks"]
    return " ".join(map(str, ranks)) if isinstance(ranks, list | tuple) else ""


def print_plan(planned: "Plan", seconds: float | None) -> None:
    """Which merges would run, and which not and why."""
    cost = f", about {_duration(seconds)}" if seconds is not None else ""
    print_table(
        f"{len(planned.jobs)} merges to do{cost}",
        ("subject", "style", "method", "licence", "merge id"),
        [
            (job.subject.name, job.style.name, job.recipe.method, job.licence or "private", job.recipe.merge_id[:12])
            for job in planned.jobs
        ],
    )
    if planned.skipped:
        OUT.print(f"{len(planned.skipped)} left out", style="bold")
    for one in planned.skipped:
        print_reason("skipped     ", f"{one.reason.code}  {one.job.name}", one.reason)
    OUT.print(f"{planned.finished} finished before, {planned.blocked} blocked, {planned.postponed} beyond the limit")


def print_cut(exported: "Exported") -> None:
    """What a smaller rank cost, if layers were cut."""
    if exported.rank_error is not None:
        said = (
            f"Cut to rank {exported.rank}: off by {exported.rank_error:.2%} of the merge, the style's strength fixed."
        )
        OUT.print(said, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_report(report: "Report") -> None:
    """What a night did."""
    OUT.print()
    OUT.print(f"[bold]{report.merged} merged[/bold] in {_duration(report.seconds)}, {report.finished_before} before")
    for what in ("failed", "refused", "skipped", "unpublished", "lost_batches"):
        for code, count in getattr(report, what).items():
            OUT.print(f"{count:>4} {what.replace('_', ' '):<12} {code}", highlight=False)
    for what in ("short_listed", "blocked", "postponed", "published"):
        if getattr(report, what):
            OUT.print(f"{getattr(report, what):>4} {what.replace('_', ' ')}", highlight=False)
    if report.withheld:
        OUT.print(f"Nothing was published: {report.withheld}", highlight=False)
    OUT.print(f"Gallery    {Path(report.gallery).as_uri()}", highlight=False, soft_wrap=True)
    OUT.print(f"Catalogue  {report.catalog}", highlight=False, soft_wrap=True)
    OUT.print(f"Snapshot   {report.snapshot}", highlight=False, soft_wrap=True)

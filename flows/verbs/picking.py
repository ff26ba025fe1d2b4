"""The best merged adapters, and the snapshot that answers all other questions."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.settings import Problem
from flows.verbs.options import HERE, AsJson, CatalogueUrl, SnapshotPath

if TYPE_CHECKING:
    from catalog.rankings import Picked

_Position = Annotated[float | None, typer.Option(help="0 is as the base alone, 1 as the LoRA alone")]
_HEAD = (
    *("score", "subject", "style", "method", "licence", "on subject", "on style", "on text"),
    *("rank", "bytes", "finished", "merge id", "pictures"),
)


def pick(
    subject: Annotated[str | None, typer.Option(help="only this subject")] = None,
    style: Annotated[str | None, typer.Option(help="only this style")] = None,
    method: Annotated[str | None, typer.Option(help="only this method")] = None,
    licence: Annotated[str | None, typer.Option(help="only under this licence")] = None,
    least_score: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    least_subject: _Position = None,
    least_style: _Position = None,
    least_text: _Position = None,
    most_rank: Annotated[int | None, typer.Option(min=1, help="of both adapters together")] = None,
    most_bytes: Annotated[int | None, typer.Option(min=1, help="of both adapters together")] = None,
    since: Annotated[datetime | None, typer.Option(help="finished at this time (UTC) or later")] = None,
    publishable: Annotated[bool, typer.Option("--publishable", help="may go to the Hub, and has not yet")] = False,
    front: Annotated[
        bool, typer.Option("--front", help="only those that no other beats in subject, style and text")
    ] = False,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    catalogue: CatalogueUrl = HERE,
    as_csv: Annotated[bool, typer.Option("--csv", help="a table for spreadsheets on standard output")] = False,
    as_json: AsJson = False,
) -> None:
    """The best merged adapters, best first: 0 is the base alone, 1 as good as both LoRAs alone."""
    from catalog.names import find_adapter
    from catalog.rankings import Wanted, pareto_front, ranking_scorers
    from catalog.rankings import pick as pick_best
    from catalog.schema import open_catalogue
    from flows import show

    opened = open_catalogue(catalogue)
    wanted = Wanted(
        subject=find_adapter(opened, subject, "subject") if subject else None,
        style=find_adapter(opened, style, "style") if style else None,
        method=method,
        licence=licence,
        least_score=least_score,
        least_subject=least_subject,
        least_style=least_style,
        least_text=least_text,
        most_rank=most_rank,
        most_bytes=most_bytes,
        since=since.replace(tzinfo=UTC) if since else None,
        publishable=publishable,
    )
    scorers = ranking_scorers(opened)
    picked = pareto_front(opened, scorers, **wanted)[:limit] if front else pick_best(opened, scorers, limit, **wanted)
    sheets = _sheets(catalogue, [one.merge.merge_id for one in picked])
    if as_json:
        show.print_json([{**asdict(one), "pictures": sheet} for one, sheet in zip(picked, sheets, strict=True)])
        return
    rows = [_row(one, sheet) for one, sheet in zip(picked, sheets, strict=True)]
    if as_csv:
        show.print_csv(_HEAD, rows)
        return
    short = [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    show.print_table(f"{len(rows)} merges", _HEAD, short)


def _sheets(catalogue: str, merge_ids: Sequence[str]) -> list[Path]:
    """The contact sheet of each merge in the store of the last night."""
    from catalog.queries import latest_settings
    from catalog.schema import open_catalogue
    from flows.settings import Settings

    if not merge_ids:
        return []
    store = Settings.model_validate(latest_settings(open_catalogue(catalogue))).store_folder
    return [store / "merges" / merge_id / "previews" / "sheet.png" for merge_id in merge_ids]


def _row(one: "Picked", sheet: Path) -> tuple[object, ...]:
    return (
        one.merge.score_01,
        one.subject_name,
        one.style_name,
        one.merge.method,
        one.licence,
        one.subject_position,
        one.style_position,
        one.text_position,
        one.rank,
        one.size_bytes,
        f"{one.finished_at:%Y-%m-%d}",
        one.merge.merge_id[:12],
        sheet,
    )


def notebook(path: SnapshotPath = Path("catalog.duckdb")) -> None:
    """Explore the snapshot in a browser, as a marimo notebook; ends with Ctrl-C."""
    if find_spec("marimo") is None:
        raise Problem("MARIMO_MISSING", "marimo is not installed.", 'pip install "ziplora[notebook]"', exit_code=3)
    from catalog.snapshot import ask

    ask(path, "FROM picks LIMIT 0")  # says what is wrong with it, if anything is
    pages = files("catalog") / "notebook.py"
    command = [sys.executable, "-m", "marimo", "run", str(pages), "--", "--snapshot", str(path.absolute())]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def snapshot(
    to: SnapshotPath = Path("catalog.duckdb"), catalogue: CatalogueUrl = HERE, as_json: AsJson = False
) -> None:
    """Write the snapshot anew: the catalogue of this moment, for `ziplora query` and DuckDB."""
    from catalog.schema import open_catalogue
    from catalog.snapshot import write_snapshot
    from flows import show

    write_snapshot(open_catalogue(catalogue), to)
    if as_json:
        show.print_json({"snapshot": to, "size_bytes": to.stat().st_size})
    else:
        show.OUT.print(f"{to}: {to.stat().st_size:,} bytes", highlight=False, soft_wrap=True)

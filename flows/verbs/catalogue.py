"""Questions to a catalogue, and wishes."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from flows.settings import Problem
from flows.verbs.options import HERE, AsJson, CatalogueUrl, SnapshotPath


def request(subject: str, style: str, catalogue: CatalogueUrl = HERE, as_json: AsJson = False) -> None:
    """Ask for a pair: it goes first in the next night."""
    from datetime import UTC, datetime

    from catalog.names import find_adapter
    from catalog.record import record_request
    from catalog.schema import open_catalogue
    from flows import show

    opened = open_catalogue(catalogue)
    pair = find_adapter(opened, subject, "subject"), find_adapter(opened, style, "style")
    record_request(opened, *pair, datetime.now(UTC))
    if as_json:
        show.print_json({"subject": pair[0], "style": pair[1]})
    else:
        show.OUT.print(f"{subject} × {style} goes first in the next night.")


def show_item(item: str, catalogue: CatalogueUrl = HERE, as_json: AsJson = False) -> None:
    """One adapter or merge: what is known of it."""
    from catalog.schema import open_catalogue
    from catalog.story import story_of
    from flows import show

    story = story_of(open_catalogue(catalogue), item)
    if as_json:
        show.print_json(story)
    else:
        show.print_table(
            f"{story.kind} {story.name}: {story.status}", ("", ""), [("id", story.item), *story.facts.items()]
        )


def why(item: str, catalogue: CatalogueUrl = HERE, as_json: AsJson = False) -> None:
    """The whole story of one adapter, merge, pair (SUBJECT x STYLE), publication or refused file."""
    from catalog.schema import open_catalogue
    from catalog.story import story_of
    from flows import show

    story = story_of(open_catalogue(catalogue), item)
    if as_json:
        show.print_json(story)
        return
    rows = [(f"{event.happened_at:%Y-%m-%d %H:%M:%S}", event.sentence) for event in story.events]
    show.print_table(f"{story.kind} {story.name} is {story.status}", ("when (UTC)", "what"), rows)


def gallery(catalogue: CatalogueUrl = HERE, as_json: AsJson = False) -> None:
    """Write the pages again: every subject in every style, with previews and scores."""
    from catalog.schema import open_catalogue
    from flows import show
    from flows.plan import base_of
    from flows.results import settings_of, write_pages

    opened = open_catalogue(catalogue)
    settings = settings_of(opened)
    page = write_pages(opened, settings, base_of(settings))
    if as_json:
        show.print_json({"gallery": page})
    else:
        show.OUT.print(page.absolute().as_uri(), highlight=False, soft_wrap=True)


def query(
    sql: Annotated[str | None, typer.Argument(help="a question in SQL")] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write a Parquet file of every table to this folder instead")
    ] = None,
    snapshot: SnapshotPath = Path("catalog.duckdb"),
    as_json: AsJson = False,
) -> None:
    """Ask the snapshot in SQL (DuckDB), or write its tables as Parquet."""
    from catalog.snapshot import ask, export_parquet
    from flows import show

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    if sql is not None and parquet is None:
        columns, rows = ask(snapshot, sql)
        title = f"{len(rows)} rows"
    elif parquet is not None and sql is None:
        columns = ("file", "size_bytes")
        rows = [(path, path.stat().st_size) for path in export_parquet(snapshot, parquet)]
        title = f"{len(rows)} files"
    else:
        raise Problem("USAGE", "It takes a question in SQL, or --parquet FOLDER.", "ziplora query --help")
    if as_json:
        show.print_json([dict(zip(columns, map(_finite, row), strict=True)) for row in rows])
    else:
        show.print_table(title, columns, rows)


def _finite(value: object) -> object:
    """JSON has no word for NaN and infinities."""
    return None if isinstance(value, float) and not isfinite(value) else value

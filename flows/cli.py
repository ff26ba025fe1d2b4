"""The command line: verbs that compose, print, and exit with a code.

Exit codes: 0 done, 1 some merges failed or some of the Hub was not seen, 2 bad input, 3 broken environment.
"""

import atexit
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from flows.settings import Problem, Problems, quiet_libraries

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Any subject in any style, for a whole catalogue, every night.",
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file of settings")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Rank = Annotated[int | None, typer.Option(help="cut layers to this rank by SVD; says what that loses")]
CatalogueUrl = Annotated[str, typer.Option("--catalogue", envvar="ZIPLORA_CATALOGUE", help="its URL")]
_HERE = "sqlite:///catalog.sqlite"
_INTERRUPTED = 130
_BROKEN = ("DISK", "CATALOGUE", "STORE", "HUB", "AUTH")
"""How codes of a broken environment begin."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of everything it makes")] = Path("ziplora-demo"),
    as_json: AsJson = False,
) -> None:
    """A whole night on the bundled tiny world: on the CPU, offline, in minutes; ends with a gallery to open."""
    from flows.demo import write_config

    _night(write_config(out), as_json, ())


@app.command()
def check(config: Config, as_json: AsJson = False) -> None:
    """All that is wrong with a CONFIG at once, before any download or GPU second."""
    from flows import show
    from flows.check import problems_of

    problems = problems_of(config)
    if as_json:
        show.print_json([{"code": one.code, "fact": one.fact, "next_step": one.next_step} for one in problems])
    for one in [] if as_json else problems:
        show.OUT.print(str(one), highlight=False, markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(Problems(problems).exit_code)
    if not as_json:
        show.OUT.print("Nothing is wrong.")


@app.command()
def scan(config: Config, as_json: AsJson = False) -> None:
    """What the sources offer: what is usable, what is refused and why."""
    from catalog.hub import PASSING, Hub
    from catalog.schema import open_catalogue
    from flows import show
    from flows.progress import tell_pause
    from flows.scan import scan as scanned
    from flows.settings import load_settings

    settings = load_settings(config)
    catalogue = open_catalogue(settings.catalogue, migrate=True)  # where it keeps what it has read of the Hub's files
    with show.progress_bars():
        found = list(scanned(settings, Hub(waiting=tell_pause), catalogue))
    if as_json:
        show.print_json(found)
    else:
        show.print_found(found)
    if any(one.reason is not None and one.reason.code in PASSING for one in found):
        raise typer.Exit(3)


@app.command()
def plan(config: Config, as_json: AsJson = False) -> None:
    """Which merges a night would do, which not and why, and how long it would take."""
    from flows import show
    from flows.outlook import outlook
    from flows.settings import load_settings

    planned, seconds = outlook(load_settings(config))
    if as_json:
        show.print_json(
            {
                "merges": [
                    {
                        "merge_id": job.recipe.merge_id,
                        "subject": job.subject.name,
                        "style": job.style.name,
                        "method": job.recipe.method,
                        "licence": job.licence,
                    }
                    for job in planned.jobs
                ],
                "skipped": [
                    {"merge": one.job.name, "code": one.reason.code, "fact": one.reason.fact} for one in planned.skipped
                ],
                "finished": len(planned.finished),
                "blocked": planned.blocked,
                "postponed": planned.postponed,
                "seconds": seconds,
            }
        )
    else:
        show.print_plan(planned, seconds)


@app.command()
def run(config: Config, as_json: AsJson = False) -> None:
    """One night in this process; a Prefect server shows it when PREFECT_API_URL names one."""
    _night(config, as_json, ())


def _night(config: Path, as_json: bool, requests: tuple[tuple[str, str], ...]) -> None:
    from flows.check import problems_of

    problems = problems_of(config)
    if problems:
        raise Problems(problems)
    from catalog.hub import PASSING
    from flows import show
    from flows.nightly import nightly

    with show.progress_bars():
        report = nightly(str(config.absolute()))
    if as_json:
        show.print_json(report)
    else:
        show.print_report(report)
    if report.failed or report.lost_batches or PASSING & report.refused.keys():
        raise typer.Exit(1)


@app.command()
def merge(
    subject: Annotated[Path, typer.Argument(help="a LoRA file, or a repository folder with its card")],
    style: Annotated[Path, typer.Argument(help="a LoRA file, or a repository folder with its card")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the adapter file to write")],
    base: Annotated[
        str | None, typer.Option(help="base model: a folder or Hub id; told from the LoRAs if not given")
    ] = None,
    method: Annotated[str, typer.Option(help="a way to merge")] = "ziplora-joint",
    subject_prompt: Annotated[str | None, typer.Option(help="calls the subject up; the card's if not given")] = None,
    style_prompt: Annotated[str | None, typer.Option(help="calls the style up; the card's if not given")] = None,
    style_strength: Annotated[float, typer.Option(help="0 without the style, 1 as merged")] = 1.0,
    rank: Rank = None,
    dialect: Annotated[Literal["diffusers", "kohya"], typer.Option(help="names of the tensors")] = "diffusers",
    as_json: AsJson = False,
) -> None:
    """One pair, files in, file out: no catalogue, no Prefect."""
    from flows import show
    from flows.single import merge_two
    from ziplora.recipe import Export

    chosen = Export(dialect=dialect, style_strength=style_strength, rank=rank)
    with show.progress_bars():
        result, exported = merge_two(subject, style, out, base, method, (subject_prompt, style_prompt), chosen)
    if as_json:
        show.print_json({**asdict(result), "export": exported})
    else:
        show.OUT.print(f"{out}: rank {exported.rank}, {result.merged} layers merged, {result.seconds:.1f} s")
        if result.rank_error is not None:
            show.OUT.print(f"At the rank of both it is off by {result.rank_error:.2%} of what {method} makes in full.")
        show.print_cut(exported)


@app.command()
def request(subject: str, style: str, catalogue: CatalogueUrl = _HERE, as_json: AsJson = False) -> None:
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


@app.command()
def pick(
    subject: Annotated[str | None, typer.Option(help="only this subject")] = None,
    style: Annotated[str | None, typer.Option(help="only this style")] = None,
    method: Annotated[str | None, typer.Option(help="only this method")] = None,
    licence: Annotated[str | None, typer.Option(help="only under this licence")] = None,
    least_score: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    catalogue: CatalogueUrl = _HERE,
    as_json: AsJson = False,
) -> None:
    """The best merged adapters, best first: 0 is the base alone, 1 as good as both LoRAs alone."""
    from catalog import queries
    from catalog.names import find_adapter
    from catalog.schema import open_catalogue
    from flows import show

    opened = open_catalogue(catalogue)
    picked = queries.pick(
        opened,
        queries.ranking_scorers(opened),
        subject=find_adapter(opened, subject, "subject") if subject else None,
        style=find_adapter(opened, style, "style") if style else None,
        method=method,
        licence=licence,
        least_score=least_score,
        limit=limit,
    )
    if as_json:
        show.print_json(picked)
        return
    rows = [
        (
            f"{one.merge.score_01:.2f}",
            one.subject_name,
            one.style_name,
            one.merge.method,
            one.licence,
            one.merge.merge_id[:12],
        )
        for one in picked
    ]
    show.print_table(f"{len(rows)} merges", ("score", "subject", "style", "method", "licence", "merge id"), rows)


@app.command(name="show")
def show_item(item: str, catalogue: CatalogueUrl = _HERE, as_json: AsJson = False) -> None:
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


@app.command()
def why(item: str, catalogue: CatalogueUrl = _HERE, as_json: AsJson = False) -> None:
    """The whole story of one adapter, merge or refused file."""
    from catalog.schema import open_catalogue
    from catalog.story import story_of
    from flows import show

    story = story_of(open_catalogue(catalogue), item)
    if as_json:
        show.print_json(story)
        return
    rows = [(f"{event.happened_at:%Y-%m-%d %H:%M:%S}", event.sentence) for event in story.events]
    show.print_table(f"{story.kind} {story.name} is {story.status}", ("when (UTC)", "what"), rows)


@app.command()
def export(
    item: Annotated[str, typer.Argument(help="a merge: the beginning of its id")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the adapter file to write")],
    dialect: Annotated[Literal["diffusers", "kohya"], typer.Option(help="names of the tensors")] = "diffusers",
    precision: Annotated[Literal["float16", "float32"], typer.Option(help="of the tensors")] = "float16",
    style_strength: Annotated[float, typer.Option(help="0 without the style, 1 as merged")] = 1.0,
    rank: Rank = None,
    catalogue: CatalogueUrl = _HERE,
    as_json: AsJson = False,
) -> None:
    """The adapter file of a merge, the same bytes each time."""
    from catalog.names import find_merge
    from catalog.schema import open_catalogue
    from flows import show
    from flows.results import export_merge
    from ziplora.recipe import Export

    chosen = Export(dialect=dialect, precision=precision, style_strength=style_strength, rank=rank)
    opened = open_catalogue(catalogue)
    exported = export_merge(opened, find_merge(opened, item), out, chosen)
    if as_json:
        show.print_json({"file": out, **asdict(exported)})
    else:
        said = f"{out}  {exported.size_bytes:,} bytes  sha256 {exported.sha256}"
        show.OUT.print(said, highlight=False, soft_wrap=True)
        show.print_cut(exported)


@app.command()
def gallery(catalogue: CatalogueUrl = _HERE, as_json: AsJson = False) -> None:
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


@app.command()
def publish(
    item: Annotated[str, typer.Argument(help="a merge: the beginning of its id")],
    namespace: Annotated[str | None, typer.Option(help="user or organisation; the settings' if not given")] = None,
    send: Annotated[bool, typer.Option("--send", help="do it; otherwise only say what would be sent")] = False,
    catalogue: CatalogueUrl = _HERE,
    as_json: AsJson = False,
) -> None:
    """Send a merge to the Hub in one commit, private unless the settings say otherwise."""
    from catalog.names import find_merge
    from catalog.schema import open_catalogue
    from flows import show
    from flows.results import publish_merge

    opened = open_catalogue(catalogue)
    published = publish_merge(opened, find_merge(opened, item), namespace=namespace, dry_run=not send)
    if as_json:
        show.print_json(published)
        return
    rows = [(path, f"{size:,}") for path, size in published.size_bytes.items()]
    said = f"commit {published.commit}" if published.commit else "not sent: say --send to send it"
    show.print_table(f"{published.repository}: {said}", ("file", "bytes"), rows)


@app.command()
def query(
    sql: Annotated[str | None, typer.Argument(help="a question in SQL")] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write a Parquet file of every table to this folder instead")
    ] = None,
    snapshot: Annotated[Path, typer.Option(help="the snapshot")] = Path("catalog.duckdb"),
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
        show.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show.print_table(title, columns, rows)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Is the environment sane: versions, device, disk, Prefect, Hub."""
    from flows import show
    from flows.check import environment

    facts = environment()
    if as_json:
        show.print_json(facts)
    else:
        show.print_table("environment", ("", "", ""), [(one.what, one.found, one.next_step) for one in facts])
    if any(one.next_step for one in facts):
        raise typer.Exit(3)


def main() -> NoReturn:
    """Run a command; whatever goes wrong is said in one sentence."""
    atexit.register(_hush)
    quiet_libraries()
    code = 0
    try:
        done = app(standalone_mode=False)
        code = done if isinstance(done, int) else 0
        if code == _INTERRUPTED:  # typer makes a number of it
            raise KeyboardInterrupt
    except (Problem, Problems) as error:
        code = _say(str(error), error.exit_code)
    except TyperException as error:
        code = _say(f"USAGE  {error} Next: ziplora --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _say("INTERRUPTED  Stopped; what was finished is kept. Next: run the same command again.", _INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - nobody should read a stack trace in a terminal
        code = _say(*_in_words(error))
    sys.exit(code)


def _hush() -> None:
    """After all else: duckdb beside torch prints a page of complaints while Python takes its modules down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


def _in_words(error: Exception) -> tuple[str, int]:
    """What any other error says, and the code to exit with."""
    from catalog.errors import CatalogueError
    from flows.trouble import disk_full, is_disk_full
    from ziplora.failure import Failure
    from ziplora.header import Refusal

    if is_disk_full(error):
        return str(disk_full(error)), 3
    if isinstance(error, Failure | Refusal | CatalogueError):
        broken = isinstance(error, CatalogueError) and error.code.startswith(_BROKEN)
        return str(error), 3 if broken else 2
    with tempfile.NamedTemporaryFile("w", prefix="ziplora-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    fact = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"UNEXPECTED  {fact}. Next: see {log.name}, and report it.", 3

"""A whole night, or the first part of one."""

from pathlib import Path
from typing import Annotated

import typer

from flows.settings import Problems
from flows.verbs.options import AsJson, Config


def demo(
    out: Annotated[Path, typer.Option(help="folder of everything it makes")] = Path("ziplora-demo"),
    as_json: AsJson = False,
) -> None:
    """A whole night on the bundled tiny world: on the CPU, offline, in minutes; ends with a gallery to open."""
    from flows.demo import write_config

    _night(write_config(out), as_json)


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


def scan(config: Config, as_json: AsJson = False) -> None:
    """What the sources offer: what is usable, what is refused and why."""
    from catalog.hub import Hub
    from catalog.hub_errors import UNANSWERED
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
    if any(one.reason is not None and one.reason.code in UNANSWERED for one in found):
        raise typer.Exit(3)


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
                "finished": planned.finished,
                "blocked": planned.blocked,
                "postponed": planned.postponed,
                "seconds": seconds,
            }
        )
    else:
        show.print_plan(planned, seconds)


def run(config: Config, as_json: AsJson = False) -> None:
    """One night in this process; a Prefect server shows it when PREFECT_API_URL names one."""
    _night(config, as_json)


def _night(config: Path, as_json: bool) -> None:
    from flows.check import problems_of

    problems = problems_of(config)
    if problems:
        raise Problems(problems)
    from catalog.hub_errors import UNANSWERED
    from flows import show
    from flows.nightly import nightly
    from flows.progress import tell

    with show.progress_bars():
        tell("starting Prefect", 0, 0)  # where no server is named, one in this process: its first start takes a while
        report = nightly(str(config.absolute()))
    if as_json:
        show.print_json(report)
    else:
        show.print_report(report)
    if report.failed or report.lost_batches or UNANSWERED & report.refused.keys() or report.withheld:
        raise typer.Exit(1)

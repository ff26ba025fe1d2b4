"""The machine that all this runs on, and what lies on it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.verbs.options import AsJson


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="settings, whose catalogue and store are looked at too")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="mend what catalogue and store disagree in")] = False,
    as_json: AsJson = False,
) -> None:
    """Is the environment sane: versions, device, disk, Prefect, Hub; do catalogue and store agree."""
    from flows import show
    from flows.check import disagreements, environment

    facts, faults = environment(), disagreements(config, repair=repair) if config else []
    if as_json:
        show.print_json([*facts, *faults])
    else:
        show.print_table("environment", ("", "", ""), [(one.what, one.found, one.next_step) for one in facts])
        show.print_table(
            f"{len(faults)} faults", ("", "", ""), [(one.what, one.found, one.next_step) for one in faults]
        )
    if any(one.next_step for one in facts):
        raise typer.Exit(3)
    if any(one.next_step for one in faults):
        raise typer.Exit(1)

"""The machine that all this runs on."""

import typer

from flows.verbs.options import AsJson


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

"""Many machines: what their server has to have, and their workers."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from flows.verbs.options import AsJson, Config


def deploy(config: Config, as_json: AsJson = False) -> None:
    """Give the Prefect server what nights of a CONFIG need: pools, deployments, automations."""
    from flows import show
    from flows.deploy import deploy as deployed

    parts = deployed(config)
    if as_json:
        show.print_json([asdict(part) for part in parts])
    else:
        rows = [(part.kind, part.name, "was there" if part.was_there else "made") for part in parts]
        show.print_table("on the server", ("", "", ""), rows)


def worker(
    gpu: Annotated[list[int] | None, typer.Option(help="only this card; again for another one")] = None,
    merge: Annotated[
        bool, typer.Option(help="workers that merge: one for each card, or one on a machine without")
    ] = True,
    orchestrate: Annotated[bool, typer.Option("--orchestrate", help="also the worker that does the nights")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep this machine's workers at work until it is stopped."""
    from flows import show
    from flows.keeper import keep, posts

    wanted = posts(gpu or [], merge=merge, orchestrate=orchestrate)
    kept = keep(wanted, lambda sentence: print(sentence, file=sys.stderr, flush=True))  # noqa: T201
    if as_json:
        show.print_json([{"worker": one.post.name, "starts": one.starts} for one in kept])

"""What goes to the Hub."""

from typing import Annotated

import typer

from catalog.facts import Reason
from flows.settings import Problem
from flows.verbs.options import HERE, AsJson, CatalogueUrl


def publish(
    item: Annotated[str | None, typer.Argument(metavar="MERGE", help="the beginning of its id")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="the public part of the catalogue instead, as this data set")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="user or organisation; the settings' if not given")] = None,
    send: Annotated[bool, typer.Option("--send", help="do it; otherwise only say what would be sent")] = False,
    catalogue: CatalogueUrl = HERE,
    as_json: AsJson = False,
) -> None:
    """Send a merge, or a data set, to the Hub in one commit, private unless the settings say otherwise."""
    from catalog.names import find_merge
    from catalog.schema import open_catalogue
    from flows import show
    from flows.results import publish_merge, publish_public_part

    opened = open_catalogue(catalogue)
    if item is not None and dataset is None:
        published = publish_merge(opened, find_merge(opened, item), namespace=namespace, dry_run=not send)
    elif dataset is not None and item is None:
        published = publish_public_part(opened, dataset, namespace=namespace, dry_run=not send)
    else:
        raise Problem("USAGE", "It takes a merge, or --dataset NAME.", "ziplora publish --help")
    if as_json:
        show.print_json(published)
        return
    rows = [(path, f"{size:,}") for path, size in published.size_bytes.items()]
    said = f"commit {published.commit}" if published.commit else "not sent: say --send to send it"
    place = f"{published.repository}/{published.folder}".rstrip("/")
    show.print_table(f"{place}: {said}", ("file", "bytes"), rows)


def verify(
    merges: Annotated[
        list[str] | None, typer.Argument(metavar="[MERGE]...", help="the beginnings of ids; all if none is given")
    ] = None,
    catalogue: CatalogueUrl = HERE,
    as_json: AsJson = False,
) -> None:
    """Is what was published still what was sent, are its parents there, do their licences still allow it."""
    from catalog.names import find_merge
    from catalog.schema import open_catalogue
    from flows import show
    from flows.results import verify_published

    opened = open_catalogue(catalogue)
    verdicts = verify_published(opened, [find_merge(opened, said) for said in merges or ()])
    if as_json:
        show.print_json(verdicts)
    else:
        rows = [
            (one.publication.repository, one.publication.merge_id[:12], reason.code, reason.fact, reason.next_step)
            for one in verdicts
            for reason in one.reasons or (Reason("VERIFIED", "", ""),)
        ]
        show.print_table(f"{len(verdicts)} publications", ("repository", "merge", "code", "fact", "next"), rows)
    if any(one.reasons for one in verdicts):
        raise typer.Exit(1)


def takedown(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a repository, or an adapter's name or sha256")],
    why: Annotated[str, typer.Option(help="kept with its tombstone")] = "its author asked for it",
    send: Annotated[bool, typer.Option("--send", help="do it; otherwise only say what would go")] = False,
    catalogue: CatalogueUrl = HERE,
    as_json: AsJson = False,
) -> None:
    """Remove all that was made of a source, here and on the Hub, and never take it up again."""
    from catalog.schema import open_catalogue
    from flows import show
    from flows.takedown import take_down

    gone = take_down(open_catalogue(catalogue), source, why, dry_run=not send)
    if as_json:
        show.print_json(gone)
    else:
        rows = [("source", name) for name in gone.sources] + [("merge", merge_id) for merge_id in gone.merges]
        rows += [("on the Hub", name) for name in gone.publications] + [
            ("in the store", str(path)) for path in gone.files
        ]
        show.print_table("taken down" if send else "would be taken down: say --send to do it", ("what", ""), rows)
        for name, reason in gone.refused:
            show.OUT.print(f"{name}: {reason.code}  {reason.fact} Next: {reason.next_step}", soft_wrap=True)
    if gone.refused:
        raise typer.Exit(1)

"""What goes to the Hub."""

from typing import Annotated

import typer

from flows.verbs.options import HERE, AMerge, AsJson, CatalogueUrl


def publish(
    item: AMerge,
    namespace: Annotated[str | None, typer.Option(help="user or organisation; the settings' if not given")] = None,
    send: Annotated[bool, typer.Option("--send", help="do it; otherwise only say what would be sent")] = False,
    catalogue: CatalogueUrl = HERE,
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

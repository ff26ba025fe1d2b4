"""What became of earlier nights: the catalogue made anew."""

import typer

from flows.verbs.options import AsJson, Config


def rebuild(config: Config, as_json: AsJson = False) -> None:
    """Make the catalogue anew from the store, while no night runs; the earlier one is put aside."""
    from catalog.rebuild import rebuild as rebuilt
    from flows import show
    from flows.settings import load_settings

    settings = load_settings(config)
    made = rebuilt(settings.catalogue, settings.store_folder)
    if as_json:
        show.print_json(made)
    else:
        rows: list[tuple[str, object]] = [("nights", made.nights), ("adapters", made.adapters), ("merges", made.merges)]
        rows += [(f"{table}, from the earlier catalogue", count) for table, count in made.copied.items()]
        rows += [(item, f"{reason.code}: {reason.fact} Next: {reason.next_step}") for item, reason in made.left_out]
        rows += [("the earlier catalogue is now", made.aside)] if made.aside else []
        show.print_table("rebuilt", ("", ""), rows)
    if made.left_out:
        raise typer.Exit(1)

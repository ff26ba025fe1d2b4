"""What is done with earlier nights: the catalogue made anew, merges scored by other scorers."""

import typer

from flows.verbs.options import AsJson, Config


def rebuild(config: Config, as_json: AsJson = False) -> None:
    """Make the catalogue anew from the store, while no night runs; the earlier one is put aside."""
    from catalog.rebuild import rebuild as rebuilt
    from catalog.sidecars import MERGE_FACTS
    from flows import show
    from flows.settings import load_settings
    from flows.shared_store import mirror_of

    settings = load_settings(config)
    mirror = mirror_of(settings)
    if mirror is not None:
        mirror.fetch_all(f"merges/*/{MERGE_FACTS}")
    made = rebuilt(settings.catalogue, settings.store_folder)
    if as_json:
        show.print_json(made)
    else:
        rows: list[tuple[str, object]] = [("nights", made.nights), ("adapters", made.adapters), ("merges", made.merges)]
        rows += [("publications", made.publications)]
        rows += [(f"{table}, from the earlier catalogue", count) for table, count in made.copied.items()]
        rows += [("the earlier catalogue is now", made.aside)] if made.aside else []
        show.print_table("rebuilt", ("", ""), rows)
        for item, reason in made.left_out:
            show.print_reason("left out    ", f"{reason.code}  {item}", reason)
    if made.left_out:
        raise typer.Exit(1)


def rescore(config: Config, as_json: AsJson = False) -> None:
    """Have the scorers of a CONFIG see the kept pictures of all finished merges; nothing is merged or drawn."""
    from flows import show
    from flows.rescore import rescore as rescored
    from flows.settings import load_settings

    with show.progress_bars():
        done = rescored(load_settings(config))
    if as_json:
        show.print_json(done)
    else:
        show.OUT.print(f"{done.scored} merges were scored, {done.before} had been before, {len(done.failed)} failed.")
        for item, reason in done.failed:
            show.print_reason("failed      ", f"{reason.code}  {item[:12]}", reason)
    if done.failed:
        raise typer.Exit(1)

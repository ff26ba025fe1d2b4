"""Adapter files: of a pair outside any catalogue, or of a merge in one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.verbs.options import HERE, AMerge, AsJson, CatalogueUrl, Dialect, Out, Rank, Strength


def merge(
    subject: Annotated[Path, typer.Argument(help="a LoRA file, or a repository folder with its card")],
    style: Annotated[Path, typer.Argument(help="a LoRA file, or a repository folder with its card")],
    out: Out,
    base: Annotated[
        str | None, typer.Option(help="base model: a folder or Hub id; told from the LoRAs if not given")
    ] = None,
    method: Annotated[str, typer.Option(help="a way to merge")] = "ziplora-joint",
    subject_prompt: Annotated[str | None, typer.Option(help="calls the subject up; the card's if not given")] = None,
    style_prompt: Annotated[str | None, typer.Option(help="calls the style up; the card's if not given")] = None,
    style_strength: Strength = 1.0,
    rank: Rank = None,
    dialect: Dialect = "diffusers",
    allow_outliers: Annotated[
        bool, typer.Option("--allow-outliers", help="merge even what changes weights absurdly much")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One pair, files in, file out: no catalogue, no Prefect."""
    from flows import show
    from flows.single import merge_two
    from ziplora.recipe import Export

    chosen = Export(dialect=dialect, style_strength=style_strength, rank=rank)
    prompts = (subject_prompt, style_prompt)
    with show.progress_bars():
        result, exported = merge_two(subject, style, out, base, method, prompts, chosen, allow_outliers)
    if as_json:
        show.print_json({**asdict(result), "export": exported})
    else:
        show.OUT.print(f"{out}: rank {exported.rank}, {result.merged} layers merged, {result.seconds:.1f} s")
        if result.rank_error is not None:
            show.OUT.print(f"At the rank of both it is off by {result.rank_error:.2%} of what {method} makes in full.")
        show.print_cut(exported)


def export(
    item: AMerge,
    out: Out,
    dialect: Dialect = "diffusers",
    precision: Annotated[Literal["float16", "float32"], typer.Option(help="of the tensors")] = "float16",
    style_strength: Strength = 1.0,
    rank: Rank = None,
    catalogue: CatalogueUrl = HERE,
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

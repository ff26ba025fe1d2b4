"""Arguments and options that several verbs take."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file of settings")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Out = Annotated[Path, typer.Option("-o", "--out", help="the adapter file to write")]
Dialect = Annotated[Literal["diffusers", "kohya"], typer.Option(help="names of the tensors")]
Strength = Annotated[float, typer.Option(help="0 without the style, 1 as merged")]
Rank = Annotated[int | None, typer.Option(help="cut layers to this rank by SVD; says what that loses")]
AMerge = Annotated[str, typer.Argument(metavar="MERGE", help="the beginning of its id")]
CatalogueUrl = Annotated[str, typer.Option("--catalogue", envvar="ZIPLORA_CATALOGUE", help="its URL")]
SnapshotPath = Annotated[Path, typer.Option("--snapshot", help="the DuckDB file")]
HERE = "sqlite:///catalog.sqlite"

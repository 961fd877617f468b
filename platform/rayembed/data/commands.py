"""`rayembed data`: list and build the built-in sources."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.data.card import read_card
from rayembed.data.sources import SOURCES
from rayembed.data.splits import SPLITS
from rayembed.data.store import build_source, built_in_source, is_built
from rayembed.errors import DataError
from rayembed.paths import resolve

app = typer.Typer(help="List and build the built-in data sources.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Folder of the sources, relative to the workspace.")]


@app.command("list")
def list_sources(out: Out = Path("data")) -> None:
    """Show the built-in sources and, for those already built, their rows."""
    line = "{:<18} {:<7} {:<15} {:<21} {:<14} {}"
    typer.echo(line.format("NAME", "KIND", "TASK TYPE", "TRAIN / DEV / TEST", "NEEDS", "LICENCE"))
    for source in SOURCES.values():
        rows = _rows(resolve(out) / source.name, source.name)
        typer.echo(
            line.format(source.name, source.kind, source.task_type, rows, source.requires, source.licence)
        )


@app.command("build")
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Names from `list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Build every source.")] = False,
    out: Out = Path("data"),
) -> None:
    """Build sources that are missing or were made by another version of their builder."""
    if bool(names) == every:
        raise DataError(f"give either names or --all; the names are {', '.join(SOURCES)}")
    chosen = [built_in_source(name).name for name in names or SOURCES]
    for name in chosen:
        folder = build_source(name, resolve(out))
        typer.echo(f"{name}: {_rows(folder, name)} rows in {folder}")


def _rows(folder: Path, name: str) -> str:
    card = read_card(folder)
    if card is None or not is_built(SOURCES[name], folder):
        return "not built"
    return " / ".join(str(card["rows"].get(split, 0)) for split in SPLITS)

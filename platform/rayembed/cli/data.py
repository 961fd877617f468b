"""`rayembed data`: list, look at, check, build and describe sources."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import FilePath, Recipe, Set
from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_write, resolve
from rayembed.config.data import DataConfig, SourceFormat, SourceKind, UserSourceConfig
from rayembed.data.build import REJECTS_FILE, build_user_source, declared_source
from rayembed.data.card import built_names, full_card, read_card, readable_card
from rayembed.data.sample import sample_source
from rayembed.data.sources import SOURCES
from rayembed.data.sources.base import SPLITS
from rayembed.data.store import build_source, built_in_source, is_built, read_split

app = typer.Typer(help="List, check, build and describe data sources.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Folder of the sources, relative to the workspace.")]
Kind = Annotated[SourceKind, typer.Option(help="Layout of the rows.")]
Format = Annotated[SourceFormat, typer.Option(help="Format, if the file names do not tell it.")]
Split = Annotated[str | None, typer.Option(help="Split that is read, or all.")]
Configuration = Annotated[str | None, typer.Option(help="Configuration of a hub data set, or all.")]
Renamed = Annotated[
    list[str] | None,
    typer.Option("--column", help="COLUMN=NAME: name of a column in the files; may be repeated."),
]


@app.command("list")
def list_sources(out: Out = Path("data")) -> None:
    """List built-in sources, and your own that are built, with their rows."""
    line = "{:<20} {:<10} {:<15} {:<21} {:<14} {}"
    typer.echo(line.format("NAME", "KIND", "TASK TYPE", "TRAIN / DEV / TEST", "NEEDS", "LICENCE"))
    for source in SOURCES.values():
        rows = (
            _rows(resolve(out) / source.name) if is_built(source, resolve(out) / source.name) else "not built"
        )
        typer.echo(
            line.format(source.name, source.kind, source.task_type, rows, source.requires, source.licence)
        )
    for name in built_names(resolve(out)):
        if name not in SOURCES:
            card = read_card(resolve(out) / name) or {}
            rows = _rows(resolve(out) / name)
            typer.echo(
                line.format(name, card["kind"], card["task_type"], rows, "your files", card["licence"])
            )


@app.command("build")
def build(
    names: Annotated[
        list[str] | None, typer.Argument(help="Built-in names, or names from the recipe.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Build every built-in source.")] = False,
    config: Annotated[
        FilePath | None, typer.Option(help="Recipe that declares the sources under data.sources.")
    ] = None,
    out: Out = Path("data"),
) -> None:
    """Build sources that are missing or out of date."""
    from rayembed.config.loading import load_config  # torch takes seconds to import; --help does without

    data = load_config(config).data if config else DataConfig()
    declared = data.sources
    if bool(names) == every:
        known = ", ".join([*declared, *SOURCES])
        raise DataError(f"give either names or --all; the names are {known}")
    for name in names or ():
        if name not in declared:
            built_in_source(name)
    for name in names or SOURCES:
        if every and (reason := SOURCES[name].missing()):
            typer.echo(f"{name}: skipped, {reason}")
            continue
        if name in declared:
            folder = build_user_source(name, declared_source(data, name), resolve(out))
        else:
            folder = build_source(name, resolve(out))
        typer.echo(f"{name}: {_rows(folder)} rows in {folder}")


@app.command("sample")
def sample(
    name: Annotated[
        str, typer.Argument(help="Name from the recipe, built-in name, file, folder, URI or hub:OWNER/NAME.")
    ],
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="Number of rows.")] = 5,
    config: Annotated[FilePath | None, typer.Option(help="Recipe that declares the source.")] = None,
    kind: Kind = "pairs",
    format: Format = "auto",
    split: Split = None,
    configuration: Configuration = None,
    columns: Renamed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    out: Out = Path("data"),
) -> None:
    """Show how files are understood and their first rows, before anything is built."""
    from rayembed.config.loading import load_config  # torch takes seconds to import; --help does without

    declared = load_config(config).data.sources if config else {}
    if name in SOURCES and name not in declared:
        build_source(name, resolve(out))
        found = read_split(resolve(out), name, split or "train").slice(0, rows).to_pylist()
        typer.echo("\n".join(json.dumps(row, ensure_ascii=False) for row in found))
        return
    source = declared.get(name) or _source(name, kind, format, split, configuration, columns)
    taken = sample_source(name, source, rows)
    typer.echo(
        json.dumps(asdict(taken), indent=2, ensure_ascii=False, default=str)
        if as_json
        else "\n".join(taken.lines())
    )


@app.command("card")
def card(
    name: Annotated[str, typer.Argument(help="Name of a built source.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole card as JSON.")] = False,
    out: Out = Path("data"),
) -> None:
    """Describe a built source: rows, lengths, languages, overlap, origin and licence."""
    found = full_card(resolve(out), name)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else readable_card(found))


@app.command("validate")
def validate(
    path: Annotated[str, typer.Argument(help="File, folder, URI or hub:OWNER/NAME.")],
    kind: Kind = "pairs",
    format: Format = "auto",
    split: Split = None,
    configuration: Configuration = None,
    columns: Renamed = None,
    largest_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="A higher share of bad rows is an error.")
    ] = 0.01,
    rejects: Annotated[Path, typer.Option(help="File to list the bad rows in.")] = Path("rejects.jsonl"),
) -> None:
    """Check files as a build would, and print what the card would say."""
    source = _source(path, kind, format, split, configuration, columns)
    source = source.model_copy(update={"largest_bad_share": largest_bad_share})
    with tempfile.TemporaryDirectory(prefix="rayembed-validate-") as folder:
        built = build_user_source("checked", source, Path(folder), rejects=resolve(rejects))
        listed = (built / REJECTS_FILE).read_text()
        typer.echo(readable_card(full_card(Path(folder), "checked")))
    if listed:
        atomic_write(resolve(rejects), listed)
        typer.echo(f"rejects: {resolve(rejects)}")


@app.command("plan")
def plan(
    recipe: Annotated[Recipe, typer.Argument(help="Recipe, a YAML file.")],
    show: Annotated[int, typer.Option(min=0, help="Number of batches to print per stage.")] = 1,
    step: Annotated[int, typer.Option(min=0, help="Step of the first batch.")] = 0,
    stage: Annotated[str | None, typer.Option(help="Show only this stage.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Print whole texts.")] = False,
    set: Set = None,
) -> None:
    """Print what the steps of a recipe train on: queries, positives and negatives.

    Sources are built and prepared as training would; nothing is trained.
    """
    from rayembed.config.loading import load_config  # torch and transformers; --help does without
    from rayembed.training.show_plan import show_plan

    config = load_config(recipe, set or ())
    for line in show_plan(config, show=show, step=step, stage_name=stage, full=full):
        typer.echo(line)


def _source(
    place: str,
    kind: SourceKind,
    format: SourceFormat,
    split: str | None,
    configuration: str | None,
    columns: list[str] | None,
) -> UserSourceConfig:
    """A source that options declare."""
    hub = place.removeprefix("hub:") if place.startswith("hub:") else None
    if not (hub or place):
        raise ConfigError("name a file, a folder, a URI, or a data set as hub:OWNER/NAME")
    return UserSourceConfig(
        path=None if hub else place,
        hub=hub,
        kind=kind,
        format=format,
        split=split,
        config=configuration,
        columns=dict(_assignment(column) for column in columns or ()),
    )


def _assignment(text: str) -> tuple[str, str]:
    column, separator, name = text.partition("=")
    if not separator or not column or not name:
        raise ConfigError(f"--column {text!r} must have the form COLUMN=NAME, for example positives=answer")
    return column, name


def _rows(folder: Path) -> str:
    card = read_card(folder)
    return " / ".join(str(card["rows"].get(split, 0)) for split in SPLITS) if card else "not built"

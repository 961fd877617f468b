"""`rayembed runs` and `rayembed compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rayembed.common.errors import DataError
from rayembed.common.paths import location_of, resolve

_RUNS = Path("runs")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = _RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of a table.")] = False,
) -> None:
    """List runs with status, score and cost, newest first."""
    from rayembed.reports.runs import find_runs, format_runs

    found = find_runs(resolve(folder))
    typer.echo(json.dumps([run.as_record() for run in found], indent=2) if as_json else format_runs(found))


def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more runs, by name or folder.")],
    folder: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = _RUNS,
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write (default: compare.html in the folder of runs).")
    ] = None,
) -> None:
    """Draw the curves of several runs in one HTML file and print what differs."""
    from rayembed.reports.compare import format_comparison, write_comparison
    from rayembed.reports.runs import open_run

    if len(set(names)) < 2:
        raise DataError(f"only run {names[0]!r} is named; name another one to compare it with")
    opened = [open_run(name, resolve(folder)) for name in dict.fromkeys(names)]
    path = resolve(output) if output else resolve(folder) / "compare.html"
    write_comparison(opened, path)
    typer.echo(format_comparison(opened))
    typer.echo(f"report: {location_of(path)}")

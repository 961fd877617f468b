"""`rayembed mirror`."""

from typing import Annotated, Any

import typer

from rayembed.cli.options import names_of
from rayembed.common.errors import UserError

_BENCHMARK = "MTEB(eng, v1)"

app = typer.Typer(
    no_args_is_help=True, help="Keep the data of mteb's tasks in a folder, for clusters without a network."
)


Folder = Annotated[str, typer.Argument(help="Folder of the mirror.")]
Benchmark = Annotated[str, typer.Option(help="Benchmark with its version.")]
Tasks = Annotated[str | None, typer.Option(help="Tasks instead of a benchmark, separated by commas.")]


@app.command("make")
def make_mirror(folder: Folder, benchmark: Benchmark = _BENCHMARK, tasks: Tasks = None) -> None:
    """Download the data of a benchmark.

    If it is interrupted, run it again to continue.
    """
    registry_mirror, selected = _mirror(folder, benchmark, tasks)
    registry_mirror.make(selected)
    registry_mirror.check(selected)
    typer.echo(f"complete: {len(selected)} tasks in {folder}")


@app.command("check")
def check_mirror(folder: Folder, benchmark: Benchmark = _BENCHMARK, tasks: Tasks = None) -> None:
    """Name every task whose data is missing, cut short or lacks a split."""
    registry_mirror, selected = _mirror(folder, benchmark, tasks)
    registry_mirror.check(selected)
    typer.echo(f"complete: {len(selected)} tasks in {folder}")


def _mirror(folder: str, benchmark: str, tasks: str | None) -> tuple[Any, list[Any]]:
    # mteb takes seconds to import; other commands do without.
    from rayembed.common.paths import resolve
    from rayembed.evaluation.catalogue import Catalogue
    from rayembed.evaluation.mirror import Mirror

    catalogue = Catalogue(resolve("data"))
    selection = catalogue.select(benchmark, names_of(tasks) if tasks is not None else None)
    registry = [reference for reference in selection.references if reference.origin == "mteb"]
    if not registry:
        raise UserError("none of these tasks reads from the hub; they need no mirror")
    return Mirror(resolve(folder)), [catalogue.load(reference) for reference in registry]

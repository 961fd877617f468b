"""`rayembed compress`: make a checkpoint smaller in many ways and say what each costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rayembed.cli.options import DryRun, Recipe, Set
from rayembed.cli.train import train_and_score
from rayembed.common.paths import resolve


def compress(
    recipe: Annotated[Recipe, typer.Argument(help="Study, a YAML file such as compress.yaml.")],
    set: Set = None,
    actors: Annotated[
        int | None,
        typer.Option(min=0, help="Ray actors (default: one per GPU or CPU); 0 runs in this process."),
    ] = None,
    dry_run: DryRun = False,
) -> list[dict[str, Any]]:
    """Prune a checkpoint, train it again, store it in fewer bits, and score each combination.

    If it is interrupted, run it again to continue.

    Args:
        recipe: study file, name of a shipped one, or its content as a mapping.
        set: settings to override, each `key=value`.
        actors: Ray actors; None takes one per GPU or CPU, 0 runs in this process.
        dry_run: print the resolved recipe and the cells, then stop.

    Returns:
        One row a cell: its choices, score, difference, bytes and speed; nothing after a dry run.

    Raises:
        UserError: anything in the study, its recipes or the data that stands in the way.

    Example:
        rayembed.compress("compress", set=["methods=[sparsegpt]", "patterns=['2:4']"])
    """
    # transformers and mteb take seconds to import
    from rayembed.compression.run import plan, run_study
    from rayembed.compression.study import CompressionConfig, cells
    from rayembed.compression.table import write_table
    from rayembed.config.loading import load_recipe
    from rayembed.evaluation.run import run as score
    from rayembed.reports.compression import write_page

    study = load_recipe(recipe, CompressionConfig, set or ())
    base = Path() if isinstance(recipe, Mapping) else Path(str(recipe)).parent
    if dry_run:
        typer.echo(study.to_yaml())
        planned = cells(study)
        runs = {own.run.name for own in plan(study, base).values() if own.run is not None}
        typer.echo("\n".join(", ".join(level for level in cell.levels.values() if level) for cell in planned))
        typer.echo(f"{len(planned)} cells, {len(runs)} trainings")
        return []
    measured = run_study(study, base, train_and_score, score, actors)
    folder = resolve(study.output) / study.name
    rows = write_table(study, measured, folder)
    typer.echo(f"table: {folder / 'compression.md'}\nplot: {write_page(study.name, rows, folder)}")
    return rows

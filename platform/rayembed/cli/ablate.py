"""`rayembed ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayembed.cli.options import FilePath
from rayembed.cli.train import train_and_score
from rayembed.common.paths import remove, resolve

if TYPE_CHECKING:
    from rayembed.config.run import RunConfig
    from rayembed.evaluation.ablation import Grid


def ablate(
    grid: Annotated[FilePath, typer.Argument(help="Grid, a YAML file such as ablation-paper.yaml.")],
    most_cells: Annotated[
        int | None, typer.Option(min=0, help="Stop after this many new cells; 0 only writes the tables.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop.")] = False,
) -> Path | None:
    """Train and score the cells of a grid and write tables with paired tests.

    If it is interrupted, run it again to continue.
    """
    # mteb takes seconds to import
    from rayembed.evaluation.ablation import ablate as run_grid
    from rayembed.evaluation.ablation import cell_config, cells, load_grid

    grid = Path(grid)
    declared = load_grid(grid)
    if dry_run:
        planned = cells(declared)
        for cell in planned:
            config = cell_config(declared, cell, grid.parent, Path(declared.output))
            steps = ", ".join(f"{stage.name} {stage.steps}" for stage in config.stages)
            typer.echo(f"{cell.name:44} {cell.choice:44} {steps}")
        typer.echo(f"{len(planned)} cells")
        return None
    tables = run_grid(declared, grid.parent, _train_and_evaluate, most_cells=most_cells) / "ablation.md"
    typer.echo(f"tables: {tables}")
    return tables


def _train_and_evaluate(grid: "Grid", config: "RunConfig", folder: Path) -> None:
    """Train one configuration and score it; its stages are deleted, model and results are kept."""
    from rayembed.evaluation.ablation import LABEL
    from rayembed.evaluation.run import run

    model = train_and_score(config)
    run(
        model,
        output=folder / "results",
        data_dir=resolve(config.data.directory),
        benchmark=grid.benchmark,
        tasks=grid.tasks,
        name=LABEL,
    )
    remove(folder / "stages")

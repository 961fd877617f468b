"""Run the cells of a grid one after the other; a cell that is scored is never run again."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from rayembed.ablation.grid import Cell, Grid, cell_config, cells
from rayembed.ablation.report import write_tables
from rayembed.config import RunConfig
from rayembed.evaluation.record import RECORD_FILE, ModelRecord, read_record
from rayembed.paths import resolve

logger = logging.getLogger(__name__)

_LABEL = "trained"
Runner = Callable[[Grid, RunConfig, Path], None]


def ablate(grid: Grid, base: Path, *, most_cells: int | None = None, runner: Runner | None = None) -> Path:
    """Train and score the cells that are missing, then write the tables.

    Args:
        grid: the ablation.
        base: folder of the grid's file.
        most_cells: stop after so many new cells, 0 only writes the tables; they say what is missing.
        runner: trains a configuration and leaves its record under `<folder>/results/trained`.

    Returns:
        the folder of the ablation, with ablation.md and ablation.csv.

    Raises:
        UserError: the grid or a recipe is not valid; all are checked before the first is run.
        RuntimeError: cells failed; all others were run and the tables are written.
    """
    folder = resolve(grid.output) / grid.name
    runs = folder / "cells"
    planned = {cell: cell_config(grid, cell, base, runs) for cell in cells(grid)}
    left = [cell for cell in planned if not _is_scored(runs, cell)]
    logger.info("%d cells, %d to run", len(planned), len(left))
    failed: dict[Cell, Exception] = {}
    for number, cell in enumerate(left[:most_cells], start=1):
        logger.info("cell %d of %d: %s, seed %d", number, len(left), cell.choice, cell.seed)
        try:
            (runner or train_and_score)(grid, planned[cell], runs / cell.name)
        except Exception as error:  # noqa: BLE001 - a cell that fails must not cost the others
            logger.warning("cell %s failed: %s", cell.name, error)
            failed[cell] = error
        write_tables(grid, records(grid, runs), folder)
    write_tables(grid, records(grid, runs), folder)
    if failed:
        reasons = "; ".join(f"{cell.name}: {error}" for cell, error in failed.items())
        raise RuntimeError(f"{len(failed)} cells failed, run again to repeat them: {reasons}")
    return folder


def train_and_score(grid: Grid, config: RunConfig, folder: Path) -> None:
    """Train one configuration and score it; its stages are deleted, model and results are kept."""
    from rayembed.evaluation.runner import run  # both take seconds to import
    from rayembed.launch.run import train

    model = train(config)
    run(
        model,
        output=folder / "results",
        data_dir=resolve(config.data.directory),
        benchmark=grid.benchmark,
        tasks=grid.tasks,
        actors=config.evaluation.actors,
        name=_LABEL,
    )
    shutil.rmtree(folder / "stages", ignore_errors=True)


def records(grid: Grid, runs: Path) -> dict[Cell, ModelRecord]:
    """Records of the cells that have been scored."""
    return {
        cell: read_record(runs / cell.name / "results" / _LABEL)
        for cell in cells(grid)
        if _is_scored(runs, cell)
    }


def _is_scored(runs: Path, cell: Cell) -> bool:
    return (runs / cell.name / "results" / _LABEL / RECORD_FILE).is_file()

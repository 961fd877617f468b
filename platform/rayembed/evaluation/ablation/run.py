"""Run the cells of a grid one after the other; a cell that is scored is never run again."""

import logging
from collections.abc import Callable
from pathlib import Path

from rayembed.common.paths import resolve
from rayembed.config import RunConfig
from rayembed.evaluation.ablation.grid import Cell, Grid, cell_config, cells
from rayembed.evaluation.ablation.report import write_tables
from rayembed.evaluation.record import RECORD_FILE, ModelRecord, read_record

logger = logging.getLogger(__name__)

LABEL = "trained"
Runner = Callable[[Grid, RunConfig, Path], None]


def ablate(grid: Grid, base: Path, runner: Runner, *, most_cells: int | None = None) -> Path:
    """Train and score the cells that are missing, then write the tables.

    Args:
        grid: the ablation.
        base: folder of the grid's file.
        runner: trains a configuration and leaves its record under `<folder>/results/trained`.
        most_cells: stop after so many new cells, 0 only writes the tables; they say what is missing.

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
            runner(grid, planned[cell], runs / cell.name)
        except Exception as error:  # noqa: BLE001 - a cell that fails must not cost the others
            logger.warning("cell %s failed: %s", cell.name, error)
            failed[cell] = error
        write_tables(grid, records(grid, runs), folder)
    write_tables(grid, records(grid, runs), folder)
    if failed:
        reasons = "; ".join(f"{cell.name}: {error}" for cell, error in failed.items())
        raise RuntimeError(f"{len(failed)} cells failed, run again to repeat them: {reasons}")
    return folder


def records(grid: Grid, runs: Path) -> dict[Cell, ModelRecord]:
    """Records of the cells that have been scored."""
    return {
        cell: read_record(runs / cell.name / "results" / LABEL)
        for cell in cells(grid)
        if _is_scored(runs, cell)
    }


def _is_scored(runs: Path, cell: Cell) -> bool:
    return (runs / cell.name / "results" / LABEL / RECORD_FILE).is_file()

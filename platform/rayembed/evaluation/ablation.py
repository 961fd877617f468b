"""An ablation: train and score every variation of a recipe, and write the tables.

A factor is one choice, such as the pooling; its levels are changes of the recipe, and the first is the
reference. A table is the product of some factors with all others at their reference. Cells that tables
share are run once, and a cell that is scored is not run again while its recipe, tasks and data files stay the
same. Two factors with two levels each:

    table [pooling]         -> latent (reference), mean
    table [order]           -> two-stage (reference), reversed
    table [pooling, order]  -> reference, reversed, mean, mean with reversed: one new cell
"""

import csv
import io
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from rayembed.common.errors import ConfigError
from rayembed.common.paths import atomic_write, fetch, resolve
from rayembed.common.settings import Frozen
from rayembed.config.loading import load_recipe
from rayembed.config.run import RunConfig
from rayembed.data.plan import fingerprint
from rayembed.evaluation.comparison import Comparison, adjusted, paired
from rayembed.evaluation.results import RECORD_FILE, ModelRecord, read_record
from rayembed.records import find_files

_NAME = r"^[a-z0-9][a-z0-9-]*$"


class Level(Frozen):
    """One level of a factor: how the recipe changes."""

    set: dict[str, Any] = Field(default_factory=dict, description="dotted key of the recipe -> value")
    stages: tuple[str, ...] | None = Field(
        None, description="names of the stages to train, in this order; None: as in the recipe"
    )


class Table(Frozen):
    """A product of factors."""

    name: str = Field(pattern=_NAME, description="heading of the table")
    factors: tuple[str, ...] = Field(min_length=1, description="what varies; the rest is at its reference")
    finding: str = Field("", description="what the paper found, to read the table against")


class Grid(Frozen):
    """A whole ablation."""

    name: str = Field(pattern=_NAME, description="name of the ablation and of its folder")
    recipe: str = Field(description="recipe that everything varies, relative to the grid's file")
    output: str = Field("ablations", description="folder of the ablation's folder, relative to the workspace")
    set: dict[str, Any] = Field(default_factory=dict, description="changes of the recipe in all cells")
    seeds: tuple[int, ...] = Field((17,), min_length=1, description="every cell is run with each of them")
    benchmark: str = Field("rayembed-offline", description="what every cell is scored on")
    tasks: tuple[str, ...] | None = Field(None, description="names of tasks instead of the benchmark")
    factors: dict[str, dict[str, Level]] = Field(description="factor -> level -> change; first: reference")
    tables: tuple[Table, ...] = Field(min_length=1, description="what is compared")

    @field_validator("factors", mode="before")
    @classmethod
    def _names_as_text(cls, factors: Any) -> Any:
        """YAML reads the name 2 of a level as a number."""
        if not isinstance(factors, dict):
            return factors
        return {
            factor: {str(level): change for level, change in levels.items()}
            if isinstance(levels, dict)
            else levels
            for factor, levels in factors.items()
        }

    @model_validator(mode="after")
    def _known_factors(self) -> "Grid":
        if empty := [name for name, levels in self.factors.items() if not levels]:
            raise ValueError(f"factor {empty[0]} has no level; give it at least its reference")
        for table in self.tables:
            if unknown := set(table.factors) - set(self.factors):
                raise ValueError(
                    f"table {table.name} varies {sorted(unknown)[0]!r}, which is no factor; declared are "
                    f"{', '.join(self.factors)}"
                )
        return self


@dataclass(frozen=True)
class Cell:
    """One combination of levels under one seed.

    Attributes:
        levels: (factor, level) of every factor that is not at its reference, in the order of the grid.
        seed: of training.
    """

    levels: tuple[tuple[str, str], ...]
    seed: int

    @property
    def choice(self) -> str:
        """The levels in words; the reference cell has none."""
        return ", ".join(f"{factor} {level}" for factor, level in self.levels) or "reference"

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        levels = [f"{factor}-{level}" for factor, level in self.levels]
        return "-".join([*(levels or ["reference"]), f"seed{self.seed}"])


def load_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a table of an unknown factor.
    """
    return load_recipe(path, Grid)


def table_choices(grid: Grid, table: Table) -> list[tuple[tuple[str, str], ...]]:
    """The combinations of a table, the reference first."""
    axes = [
        [(factor, level) for level in grid.factors[factor]]
        for factor in grid.factors
        if factor in table.factors
    ]
    references = {factor: next(iter(levels)) for factor, levels in grid.factors.items()}
    return [
        tuple((factor, level) for factor, level in combination if level != references[factor])
        for combination in itertools.product(*axes)
    ]


def cells(grid: Grid) -> list[Cell]:
    """Every cell once: all cells of the first seed, then of the next, so that a stopped grid has whole
    seeds."""
    choices = dict.fromkeys(choice for table in grid.tables for choice in table_choices(grid, table))
    return [Cell(choice, seed) for seed in grid.seeds for choice in choices]


def cell_config(grid: Grid, cell: Cell, base: Path, folder: Path) -> RunConfig:
    """The recipe of one cell.

    Args:
        grid: the ablation.
        cell: one of its cells.
        base: folder of the grid's file.
        folder: where runs of cells are kept.

    Raises:
        ConfigError: a change does not fit the recipe; the message names the cell.
    """
    levels = [grid.factors[factor][level] for factor, level in cell.levels]
    changes = {**grid.set, **{key: value for level in levels for key, value in level.set.items()}}
    changes |= {"name": cell.name, "seed": cell.seed, "output": str(folder)}
    overrides = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in changes.items()
    ]
    try:
        config = load_recipe(
            base / grid.recipe, RunConfig, [text.removesuffix("\n...") for text in overrides]
        )
        for level in levels:
            if level.stages is not None:
                config = RunConfig.model_validate(
                    config.model_dump() | {"stages": list(_ordered(config, level.stages))}
                )
    except ConfigError as error:
        raise ConfigError(f"cell {cell.choice}: {error}") from error
    return config.model_copy(update={"name": f"{cell.name}-{_fingerprint(grid, config)}"})


def _fingerprint(grid: Grid, config: RunConfig) -> str:
    """Names all that a record depends on; a change of any makes another cell, which is run."""
    files = {
        name: sorted((file.name, file.size, file.changed) for file in find_files(source))
        for name, source in config.data.sources.items()
    }
    made_from: dict[str, object] = {
        "recipe": config.model_dump(mode="json", exclude={"name", "output"}),
        "tasks": [grid.benchmark, grid.tasks],
        "files": files,
    }
    return fingerprint(made_from)[:8]


def _ordered(config: RunConfig, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    by_name = {stage.name: stage for stage in config.stages}
    for name in names:
        if name not in by_name:
            raise ConfigError(f"the recipe has no stage {name!r}; it has {', '.join(by_name)}")
        yield by_name[name].model_dump()


def write_tables(grid: Grid, records: Mapping[Cell, ModelRecord], folder: Path) -> None:
    """Write ablation.md and ablation.csv of what has been scored so far; missing cells are named."""
    lines = [f"# Ablation {grid.name}", "", f"{grid.benchmark}, seeds {', '.join(map(str, grid.seeds))}."]
    lines.append(
        "Scores are means over tasks, then over seeds; the spread is the standard deviation over seeds."
    )
    lines.append(
        "Differences and p-values pair the tasks with those of the reference, each a mean over the seeds "
        "that both have; p is Holm-corrected in a table. The last column is the difference that "
        "these tasks would have shown 8 times of 10."
    )
    rows: list[dict[str, Any]] = []
    for table in grid.tables:
        found = _rows(grid, table, records)
        rows += found
        lines += ["", f"## {table.name}", ""]
        if table.finding:
            lines += [f"The paper found: {table.finding}", ""]
        lines += _markdown(found)
    atomic_write(folder / "ablation.md", "\n".join(lines) + "\n")
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / "ablation.csv", stream.getvalue())


def _rows(grid: Grid, table: Table, records: Mapping[Cell, ModelRecord]) -> list[dict[str, Any]]:
    choices = table_choices(grid, table)
    tests = [_against_reference(choices[0], choice, grid, records) for choice in choices]
    corrected = iter(adjusted([test.p_value for test in tests if test is not None]))
    rows = []
    for choice, test in zip(choices, tests, strict=True):
        of_seeds = [records[cell] for seed in grid.seeds if (cell := Cell(choice, seed)) in records]
        row: dict[str, Any] = {"table": table.name, "choice": Cell(choice, 0).choice, "seeds": len(of_seeds)}
        if of_seeds:
            by_category = [record.categories() for record in of_seeds]
            row["mean"] = float(np.mean([means["mean"] for means in by_category]))
            row["spread"] = (
                float(np.std([means["mean"] for means in by_category], ddof=1)) if len(of_seeds) > 1 else None
            )
            for category in by_category[0]:
                if category != "mean":
                    row[category] = float(np.mean([means[category] for means in by_category]))
        if test is not None:
            row |= {"difference": test.difference, "low": test.low, "high": test.high, "p": next(corrected)}
            row["detectable"] = test.detectable
        rows.append(row)
    return rows


def _against_reference(
    reference: tuple[tuple[str, str], ...],
    choice: tuple[tuple[str, str], ...],
    grid: Grid,
    records: Mapping[Cell, ModelRecord],
) -> Comparison | None:
    if choice == reference:
        return None
    pairs: dict[str, list[tuple[float, float]]] = {}
    for seed in grid.seeds:
        one, other = records.get(Cell(reference, seed)), records.get(Cell(choice, seed))
        if one is None or other is None:
            continue
        scores = {task.name: task.score for task in other.tasks}
        for task in one.tasks:
            if task.name in scores:
                pairs.setdefault(task.name, []).append((task.score, scores[task.name]))
    # Seeds of one task are no independent samples, so a task counts once.
    means = np.array([np.mean(of_seeds, axis=0) for of_seeds in pairs.values()]).reshape(-1, 2)
    return paired(means[:, 0].tolist(), means[:, 1].tolist())


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    fixed = ("table", "choice", "seeds", "mean", "spread", "difference", "low", "high", "p", "detectable")
    categories = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in fixed]
    header = ["choice", "seeds", "mean", *categories, "difference", "p", "seen 8 of 10"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        if "mean" not in row:
            cells = [row["choice"], "0", "not run", *[""] * (len(header) - 3)]
        else:
            spread = f" ± {row['spread']:.3f}" if row["spread"] is not None else ""
            difference = (
                f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
                if "difference" in row
                else ""
            )
            cells = [row["choice"], str(row["seeds"]), f"{row['mean']:.4f}{spread}"]
            cells += [f"{row[name]:.3f}" if name in row else "" for name in categories]
            cells += [
                difference,
                *(f"{row[name]:.3f}" if name in row else "" for name in ("p", "detectable")),
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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
    left = [cell for cell, config in planned.items() if not _is_scored(runs / config.name)]
    logger.info("%d cells, %d to run", len(planned), len(left))
    failed: dict[Cell, Exception] = {}
    for number, cell in enumerate(left[:most_cells], start=1):
        logger.info("cell %d of %d: %s, seed %d", number, len(left), cell.choice, cell.seed)
        try:
            runner(grid, planned[cell], runs / planned[cell].name)
        except Exception as error:  # noqa: BLE001 - a cell that fails must not cost the others
            logger.warning("cell %s failed: %s", cell.name, error)
            failed[cell] = error
        write_tables(grid, _records(planned, runs), folder)
    write_tables(grid, _records(planned, runs), folder)
    if failed:
        reasons = "; ".join(f"{cell.name}: {error}" for cell, error in failed.items())
        raise RuntimeError(f"{len(failed)} cells failed, run again to repeat them: {reasons}")
    return folder


def _records(planned: Mapping[Cell, RunConfig], runs: Path) -> dict[Cell, ModelRecord]:
    """Records of the cells that have been scored."""
    return {
        cell: read_record(runs / config.name / "results" / LABEL)
        for cell, config in planned.items()
        if _is_scored(runs / config.name)
    }


def _is_scored(cell: Path) -> bool:
    return fetch(cell / "results" / LABEL / RECORD_FILE).is_file()

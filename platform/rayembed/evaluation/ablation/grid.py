"""The grid of an ablation: what varies around a recipe, and which combinations make a table.

A factor is one choice, such as the pooling; its levels are changes of the recipe, and the first is the
reference. A table is the product of some factors with all others at their reference. Cells that tables
share are run once.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from rayembed.common.errors import ConfigError
from rayembed.common.settings import Frozen
from rayembed.config import RunConfig
from rayembed.config.loading import load_recipe

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
        return "-".join([level for _, level in self.levels] or ["reference"]) + f"-seed{self.seed}"


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
    return config


def _ordered(config: RunConfig, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    by_name = {stage.name: stage for stage in config.stages}
    for name in names:
        if name not in by_name:
            raise ConfigError(f"the recipe has no stage {name!r}; it has {', '.join(by_name)}")
        yield by_name[name].model_dump()

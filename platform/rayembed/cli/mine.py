"""The command `rayembed mine`, which is also the mining job."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.entry import run_command
from rayembed.config import load_recipe

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, e.g. sources.0.top_k=50"),
]
FiltersOnly = Annotated[
    bool, typer.Option("--filters-only", help="use the stored candidates; encode and search nothing")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")]


def mine(
    config: Annotated[Path, typer.Argument(help="mining recipe, a YAML file")],
    overrides: Overrides = None,
    filters_only: FiltersOnly = False,
    dry_run: DryRun = False,
) -> None:
    """Find hard negatives with teachers and write sources that have them; continues what was interrupted."""
    from rayembed.mining.config import MiningRecipe  # torch takes seconds to import; --help does without

    recipe = load_recipe(config, MiningRecipe, overrides or ())
    if dry_run:
        typer.echo(recipe.to_yaml())
        return
    from rayembed.mining.run import mine as run_mining

    for result in run_mining(recipe, filters_only=filters_only):
        typer.echo(f"{result.name}: {result.report.rows} rows in {result.path}")


def job(
    config: Annotated[Path, typer.Option(help="mining recipe, a YAML file")],
    overrides: Overrides = None,
    filters_only: FiltersOnly = False,
    dry_run: DryRun = False,
) -> None:
    """Find hard negatives as a cluster job."""
    mine(config, overrides, filters_only, dry_run)


def main() -> None:
    """Entry point of jobs/mine.py."""
    run_command(job)

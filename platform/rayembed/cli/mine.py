"""`rayembed mine`."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import DryRun, Recipe, Set


def mine(
    recipe: Annotated[Recipe, typer.Argument(help="Mining recipe, a YAML file.")],
    set: Set = None,
    filters_only: Annotated[
        bool, typer.Option("--filters-only", help="Use the stored candidates; encode and search nothing.")
    ] = False,
    dry_run: DryRun = False,
) -> dict[str, Path]:
    """Find hard negatives with teachers and write them as sources.

    If it is interrupted, run it again to continue.

    Args:
        recipe: mining recipe file, or its content as a mapping.
        set: settings to override, each `key=value`.
        filters_only: use the stored candidates; encode and search nothing.
        dry_run: print the resolved recipe and stop.

    Returns:
        Name -> Parquet file of every mined source; nothing after a dry run.

    Raises:
        UserError: a source or teacher cannot be read, or an endpoint does not answer.

    Example:
        files = rayembed.mine("jobs/configs/mine.yaml", set=["sources.0.top_k=50"])
    """
    from rayembed.config.loading import load_recipe
    from rayembed.mining.config import MiningRecipe  # torch takes seconds to import; --help does without

    config = load_recipe(recipe, MiningRecipe, set or ())
    if dry_run:
        typer.echo(config.to_yaml())
        return {}
    from rayembed.mining.run import mine as run_mining

    mined = run_mining(config, filters_only=filters_only)
    for source in mined:
        typer.echo(f"{source.name}: {source.report.rows} rows in {source.path}")
    return {source.name: source.path for source in mined}

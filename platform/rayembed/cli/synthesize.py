"""`rayembed synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import DryRun, Recipe, Set


def synthesize(
    recipe: Annotated[Recipe, typer.Argument(help="Synthesis recipe, a YAML file.")],
    set: Set = None,
    dry_run: DryRun = False,
) -> dict[str, Path]:
    """Let a language model write training rows, for tasks that it invents or passages of your own.

    If it is interrupted, run it again to continue.

    Args:
        recipe: synthesis recipe file, or its content as a mapping.
        set: settings to override, each `key=value`.
        dry_run: print the resolved recipe and stop.

    Returns:
        Kind of rows -> Parquet file; nothing after a dry run.

    Raises:
        UserError: a setting is wrong, or the language model's endpoint does not answer.

    Example:
        files = rayembed.synthesize("jobs/configs/synthesize.yaml", set=["kinds.0.tasks=5"])
    """
    from rayembed.config.loading import load_recipe
    from rayembed.synthesis.config import SynthesisRecipe  # heavy imports; --help does without

    config = load_recipe(recipe, SynthesisRecipe, set or ())
    if dry_run:
        typer.echo(config.to_yaml())
        return {}
    from rayembed.synthesis.run import synthesize as run_synthesis

    results = run_synthesis(config)
    for result in results:
        typer.echo(f"{result.report.kind}: {result.report.rows} rows in {result.path}")
    return {result.report.kind: result.path for result in results}

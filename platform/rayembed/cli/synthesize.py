"""The command `rayembed synthesize`, which is also the synthesis job."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.entry import run_command
from rayembed.config import load_recipe

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, e.g. kinds.0.tasks=5"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")]


def synthesize(
    config: Annotated[Path, typer.Argument(help="synthesis recipe, a YAML file")],
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Let a language model invent tasks and write training rows for them; continues what was interrupted."""
    from rayembed.synthesis.config import SynthesisRecipe  # heavy imports; --help does without

    recipe = load_recipe(config, SynthesisRecipe, overrides or ())
    if dry_run:
        typer.echo(recipe.to_yaml())
        return
    from rayembed.synthesis.run import synthesize as run_synthesis

    for result in run_synthesis(recipe):
        typer.echo(f"{result.report.kind}: {result.report.rows} rows in {result.path}")


def job(
    config: Annotated[Path, typer.Option(help="synthesis recipe, a YAML file")],
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Make synthetic rows as a cluster job."""
    synthesize(config, overrides, dry_run)


def main() -> None:
    """Entry point of jobs/synthesize.py."""
    run_command(job)

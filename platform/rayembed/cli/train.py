"""The command `rayembed train`, which is also the training job."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.entry import run_command
from rayembed.cli.options import Overrides
from rayembed.config import RunConfig, load_config


def train(
    config: Annotated[Path, typer.Argument(help="recipe, a YAML file")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="print the resolved recipe, the estimate and first batches, take one step at the longest "
            "batch of every stage, then stop",
        ),
    ] = False,
    step: Annotated[
        bool, typer.Option(help="with --dry-run: take the step; --no-step does without its memory and time")
    ] = True,
) -> None:
    """Train a recipe: prepare data, run its stages, export the model. Continues what was interrupted."""
    resolved = load_config(config, overrides or ())
    if dry_run:
        show_plan(resolved, with_step=step)
        return
    from rayembed.cli.train_and_score import (
        train as run_training,  # importing DeepSpeed takes seconds; --help does without
    )

    typer.echo(f"model: {run_training(resolved)}")


def job(
    config: Annotated[Path, typer.Option(help="recipe, a YAML file")],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="resolve and print, train nothing")] = False,
    step: Annotated[bool, typer.Option(help="with --dry-run: take one step at the longest batch")] = True,
) -> None:
    """Train a recipe as a cluster job."""
    train(config, overrides, dry_run, step)


def show_plan(config: RunConfig, *, with_step: bool) -> None:
    """Print the resolved recipe, the estimate, and the first batch and longest step of every stage."""
    if config.validation is not None:
        from rayembed.cli.scoring import scorer_of

        scorer_of(config)  # refuses unknown tasks
    from rayembed.training.dry_run import describe

    for line in describe(config, with_step=with_step):
        typer.echo(line)


def main() -> None:
    """Entry point of jobs/train.py."""
    run_command(job)

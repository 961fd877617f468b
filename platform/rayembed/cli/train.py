"""`rayembed train`."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import Recipe, Set
from rayembed.config import RunConfig, load_config


def train(
    recipe: Annotated[Recipe, typer.Argument(help="Recipe, a YAML file.")],
    set: Set = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help=(
                "Print the resolved recipe, the memory and the first batches, take one step on "
                "the longest batch of every stage, and stop."
            ),
        ),
    ] = False,
    step: Annotated[
        bool, typer.Option(help="With --dry-run: take these steps; --no-step saves their memory and time.")
    ] = True,
) -> Path | None:
    """Train a recipe: prepare the data, run the stages, export the model.

    If it is interrupted, run it again to continue.

    Args:
        recipe: recipe file, or its content as a mapping.
        set: settings to override, each `key=value`.
        dry_run: print what would be done, then stop.
        step: with `dry_run`, take one step at the longest batch of every stage.

    Returns:
        Folder of the model, None after a dry run.

    Raises:
        UserError: anything in the recipe, the data or the machine that stands in the way.

    Example:
        model = rayembed.train("recipe.yaml", set=["stages.0.steps=20"])
    """
    config = load_config(recipe, set or ())
    if dry_run:
        _show_plan(config, with_step=step)
        return None
    model = train_and_score(config)
    typer.echo(f"model: {model}")
    return model


def train_and_score(config: RunConfig) -> Path:
    """Train a run whose checkpoints are scored by `rayembed.evaluation`, where its recipe asks for it."""
    from rayembed.cli.scoring import scorer_of  # mteb and DeepSpeed take seconds to import
    from rayembed.training.run import train as run_training

    return run_training(config, scorer_of(config))


def _show_plan(config: RunConfig, *, with_step: bool) -> None:
    """Print the resolved recipe, the estimate, and the first batch and longest step of every stage."""
    if config.validation is not None:
        from rayembed.cli.scoring import scorer_of

        scorer_of(config)  # refuses unknown tasks
    from rayembed.training.dry_run import describe

    for line in describe(config, with_step=with_step):
        typer.echo(line)

"""`rayembed train`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayembed.cli.options import Recipe, Set
from rayembed.common.paths import location_of, resolve

if TYPE_CHECKING:
    from rayembed.config.run import RunConfig  # torch takes seconds to import; --help does without


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
        model = rayembed.train("recipe.yaml", set=["stages.retrieval.steps=20"])
    """
    from rayembed.config.loading import load_config

    config = load_config(recipe, set or ())
    if dry_run:
        _show_plan(config, with_step=step)
        return None
    model = train_and_score(config)
    typer.echo(f"model: {location_of(model)}")
    return model


def train_and_score(config: "RunConfig") -> Path:
    """Train a run whose checkpoints are scored by `rayembed.evaluation`, where its recipe asks for it."""
    from rayembed.training.run import train as run_training  # DeepSpeed takes seconds to import

    return run_training(config, score_of(config))


def score_of(config: "RunConfig") -> Callable[[Path, Path], dict[str, float]] | None:
    """How a recipe wants checkpoints scored, None where it does not.

    Raises:
        UserError: a task is unknown, or a file of tasks not valid.
    """
    if config.validation is None:
        return None
    from rayembed.evaluation.catalogue import Catalogue  # mteb takes seconds to import

    files = tuple(resolve(file) for file in config.validation.task_files)
    data_dir = resolve(config.data.directory)
    Catalogue(data_dir, files).select(tasks=config.validation.tasks)
    return partial(_score, tasks=config.validation.tasks, task_files=files, data_dir=data_dir)


def _score(
    model: Path, output: Path, *, tasks: tuple[str, ...], task_files: tuple[Path, ...], data_dir: Path
) -> dict[str, float]:
    """Score of each task; called in a process of its own."""
    from rayembed.evaluation.run import run

    scores = run(model, output=output, data_dir=data_dir, tasks=tasks, task_files=task_files, actors=0)
    return {task: row["trained"] for task, row in scores.items()}


def _show_plan(config: "RunConfig", *, with_step: bool) -> None:
    """Print the resolved recipe, the memory, and the first batch and longest step of every stage."""
    score_of(config)  # refuses unknown tasks
    from rayembed.training.dry_run import describe

    for line in describe(config, with_step=with_step):
        typer.echo(line)

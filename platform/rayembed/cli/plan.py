"""The command `rayembed data plan`."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import Overrides
from rayembed.config import load_config


def plan(
    config: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe, a YAML file")],
    show: Annotated[int, typer.Option(min=0, help="whole batches to print of every stage")] = 1,
    step: Annotated[int, typer.Option(min=0, help="the first of them")] = 0,
    stage: Annotated[str | None, typer.Option(help="only this stage")] = None,
    full: Annotated[bool, typer.Option("--full", help="print whole texts, not their beginnings")] = False,
    overrides: Overrides = None,
) -> None:
    """Print what the steps of a recipe will train on: queries, positives, negatives, who competes with whom.

    Sources are built and prepared as training would; nothing is trained.
    """
    resolved = load_config(config, overrides or ())
    from rayembed.training.show_plan import show_plan  # torch and transformers; --help does without

    for line in show_plan(resolved, show=show, step=step, stage_name=stage, full=full):
        typer.echo(line)

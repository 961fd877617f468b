"""`rayembed mine`, and `rayembed mining-rounds`: train, mine with the new model, train again, and so on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayembed.cli.options import DryRun, Recipe, Set
from rayembed.cli.train import train_and_score
from rayembed.common.errors import ConfigError

if TYPE_CHECKING:
    from rayembed.config.run import RunConfig
    from rayembed.mining.config import MiningRecipe

logger = logging.getLogger(__name__)

TEACHER = "last-round"


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


def mining_rounds(
    train: Annotated[Recipe, typer.Option(help="Training recipe, a YAML file.")],
    mine: Annotated[Recipe, typer.Option(help="Mining recipe, a YAML file.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of mining, each followed by training.")] = 1,
) -> Path:
    """Train, mine with the new model and train again, several times.

    If it is interrupted, run it again to continue.
    """
    from rayembed.config.loading import load_config, load_recipe
    from rayembed.mining.config import MiningRecipe  # torch takes seconds to import; --help does without
    from rayembed.mining.run import mine as run_mining

    config, recipe = load_config(train), load_recipe(mine, MiningRecipe)
    used = {entry.source for stage in config.stages for entry in stage.blend}
    unused = sorted({entry.source for entry in recipe.sources} - used)
    if unused:
        raise ConfigError(f"{train} does not train on {unused[0]}, which {mine} mines; remove it there")
    model = train_and_score(config)
    for number in range(1, rounds + 1):
        logger.info("round %d: mining with %s", number, model)
        results = run_mining(mining_of_round(recipe, model, number))
        mined = {result.name: result.path for result in results}
        model = train_and_score(training_of_round(config, mined, number))
    typer.echo(f"model: {model}")
    return model


def training_of_round(config: "RunConfig", mined: dict[str, Path], number: int) -> "RunConfig":
    """The recipe of a later round: another name, and mined rows in place of the sources they came from."""
    from rayembed.config.loading import validate_config

    raw: dict[str, Any] = config.model_dump(mode="json")
    raw["name"] = f"{config.name}-round-{number}"
    for name, path in mined.items():
        raw["data"]["sources"][f"{name}-mined"] = {"path": str(path), "kind": "pairs", "derived_from": name}
    for stage in raw["stages"]:
        for entry in stage["blend"]:
            if entry["source"] in mined:
                entry["source"], entry["mining"] = f"{entry['source']}-mined", None
    return validate_config(raw, origin=f"round {number}")


def mining_of_round(recipe: "MiningRecipe", model: Path, number: int) -> "MiningRecipe":
    """The mining recipe with the last model as a further teacher and a folder of its own."""
    from rayembed.mining.config import CheckpointTeacher

    teachers = recipe.teachers | {TEACHER: CheckpointTeacher(kind="checkpoint", path=str(model))}
    sources = tuple(
        entry.model_copy(update={"teachers": (*entry.teachers, TEACHER)}) if entry.teachers else entry
        for entry in recipe.sources
    )
    update = {"teachers": teachers, "sources": sources, "output": f"{recipe.output}/round-{number}"}
    return recipe.model_copy(update=update)

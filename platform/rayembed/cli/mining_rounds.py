"""`rayembed mining-rounds`: train, mine with the new model, train on what it found, and so on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayembed.cli.options import Recipe
from rayembed.cli.train import train_and_score
from rayembed.common.errors import ConfigError

if TYPE_CHECKING:
    from rayembed.config.run import RunConfig
    from rayembed.mining.config import MiningRecipe

logger = logging.getLogger(__name__)

TEACHER = "last-round"


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
        raw["data"]["sources"][f"{name}-mined"] = {"path": str(path), "kind": "pairs"}
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

"""Train, mine with the new model, train on what it found, and so on; continues what was interrupted.

python jobs/mining_rounds.py --train jobs/configs/quickstart.yaml --mine jobs/configs/mine.yaml --rounds 2
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import typer

from rayembed.cli.entry import run_command
from rayembed.common.errors import ConfigError
from rayembed.config import RunConfig, load_config, load_recipe, validate_config
from rayembed.mining.config import CheckpointTeacher, MiningRecipe

logger = logging.getLogger("rayembed.rounds")

TEACHER = "last-round"


def training_of_round(config: RunConfig, mined: dict[str, Path], number: int) -> RunConfig:
    """The recipe of a later round: another name, and mined rows in place of the sources they came from."""
    raw: dict[str, Any] = config.model_dump(mode="json")
    raw["name"] = f"{config.name}-round-{number}"
    for name, path in mined.items():
        raw["data"]["sources"][f"{name}-mined"] = {"path": str(path), "kind": "pairs"}
    for stage in raw["stages"]:
        for entry in stage["blend"]:
            if entry["source"] in mined:
                entry["source"], entry["mining"] = f"{entry['source']}-mined", None
    return validate_config(raw, origin=f"round {number}")


def mining_of_round(recipe: MiningRecipe, model: Path, number: int) -> MiningRecipe:
    """The mining recipe with the last model as a further teacher and a folder of its own."""
    teachers = recipe.teachers | {TEACHER: CheckpointTeacher(kind="checkpoint", path=str(model))}
    sources = tuple(
        entry.model_copy(update={"teachers": (*entry.teachers, TEACHER)}) if entry.teachers else entry
        for entry in recipe.sources
    )
    update = {"teachers": teachers, "sources": sources, "output": f"{recipe.output}/round-{number}"}
    return recipe.model_copy(update=update)


def rounds(
    train: Annotated[Path, typer.Option(help="training recipe, a YAML file")],
    mine: Annotated[Path, typer.Option(help="mining recipe, a YAML file")],
    rounds: Annotated[int, typer.Option(min=1, help="rounds of mining, each followed by training")] = 1,
) -> None:
    """Train a recipe, then mine with its model and train again, as often as wanted."""
    from rayembed.cli.train_and_score import train as run_training  # importing DeepSpeed takes seconds
    from rayembed.mining.run import mine as run_mining

    config, recipe = load_config(train), load_recipe(mine, MiningRecipe)
    used = {entry.source for stage in config.stages for entry in stage.blend}
    unused = sorted({entry.source for entry in recipe.sources} - used)
    if unused:
        raise ConfigError(f"{train} does not train on {unused[0]}, which {mine} mines; remove it there")
    model = Path(run_training(config))
    for number in range(1, rounds + 1):
        logger.info("round %d: mining with %s", number, model)
        results = run_mining(mining_of_round(recipe, model, number))
        model = Path(run_training(training_of_round(config, {one.name: one.path for one in results}, number)))
    typer.echo(f"model: {model}")


if __name__ == "__main__":
    run_command(rounds)

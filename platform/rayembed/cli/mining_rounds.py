"""`rayembed mining-rounds`: mine, train, mine with the new model, train again, and so on.

Three rounds and a distillation, in the manner of SimLM (arXiv 2207.02578); the third round is no better:

    round      teacher                 trained model         validation
    1          BM25, of the recipe     NAME-round-1          0.52
    2          NAME-round-1            NAME-round-2          0.57
    3          NAME-round-2            NAME-round-3          0.56   ends the rounds
    distilled  NAME-round-2, checked   NAME-distilled        0.59   learns the scores of a cross-encoder
               by a cross-encoder
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayembed.cli.options import Recipe
from rayembed.cli.train import train_and_score
from rayembed.common.errors import ConfigError
from rayembed.common.paths import atomic_write, fetch, location_of, resolve

if TYPE_CHECKING:
    from rayembed.config.run import RunConfig
    from rayembed.mining.config import MiningRecipe

TEACHER = "last-round"
DISTILLED = "distilled"


def mining_rounds(
    train: Annotated[Recipe, typer.Option(help="Training recipe of every round, a YAML file.")],
    mine: Annotated[Recipe, typer.Option(help="Mining recipe; its teachers are those of the first round.")],
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.")] = 2,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="Train the last model further, instead of the base model.")
    ] = False,
    distill: Annotated[
        Recipe | None,
        typer.Option(help="Training recipe of a last round, the only one with the `rescoring` of --mine."),
    ] = None,
) -> Path:
    """Mine, train, and repeat with the new model as the teacher.

    Rounds end early when the `validation` of the training recipe finds no higher score. If it is
    interrupted, run it again to continue.
    """
    from rayembed.config.loading import load_config, load_recipe
    from rayembed.mining.config import MiningRecipe  # torch takes seconds to import; --help does without

    recipe = load_recipe(mine, MiningRecipe)
    config, last = load_config(train), load_config(distill) if distill is not None else None
    for path, trained in ((train, config), (distill, last)):
        used = {entry.source for stage in trained.stages for entry in stage.blend} if trained else None
        for entry in recipe.sources:
            if used is not None and entry.source not in used:
                raise ConfigError(
                    f"{path} does not train on {entry.source}, which {mine} mines; remove it there"
                )
    if last is not None and recipe.rescoring is None:
        raise ConfigError(f"{mine} has no rescoring, whose scores {distill} would learn; add a cross-encoder")
    plain = recipe if last is None else recipe.model_copy(update={"rescoring": None})
    best: tuple[Path, float | None] | None = None
    for number in range(1, rounds + 1):
        found = _round(config, plain, f"round-{number}", best and best[0], warm_start)
        if best and found[1] is not None and best[1] is not None and found[1] <= best[1]:
            typer.echo(f"round-{number} scores no higher than the one before, which is kept; the rounds end")
            break
        best = found
    assert best is not None
    if last is not None:
        best = _round(last, recipe, DISTILLED, best[0], warm_start)
    typer.echo(f"model: {location_of(best[0])}")
    return best[0]


def _round(
    config: "RunConfig", recipe: "MiningRecipe", name: str, before: Path | None, warm_start: bool
) -> tuple[Path, float | None]:
    """Mine and train once; returns the model and its validation score, None without one.

    Args:
        config: training recipe.
        recipe: mining recipe.
        name: of the round.
        before: model that mines; None: the teachers of the recipe.
        warm_start: train that model further.
    """
    from rayembed.training.validation import score_of_model

    run = f"{config.name}-{name}"
    mined = _mined(mining_of_round(recipe, run, before))
    training = training_of_round(config, run, mined, before if warm_start else None)
    model = train_and_score(training)
    score = score_of_model(model.parent, training.validation)
    typer.echo(
        f"{name}: validation score {'none' if score is None else f'{score:.4f}'}, {location_of(model)}"
    )
    return model, score


def _mined(recipe: "MiningRecipe") -> dict[str, Path]:
    """Source -> mined rows; what an earlier run has finished is taken as it is.

    Raises:
        ConfigError: the rows there come from another mining recipe.
    """
    from rayembed.mining.run import REPORT_FILE, RESULT_FILE
    from rayembed.mining.run import mine as run_mining
    from rayembed.training.run_folder import RECIPE_FILE, check_recipe

    folder, content = resolve(recipe.output), recipe.model_copy(update={"actors": None}).to_yaml()
    if (path := fetch(folder / RECIPE_FILE)).is_file():
        check_recipe(path.read_text(), content, f"{folder} was mined with")
    atomic_write(path, content)
    files = {entry.source: folder / entry.source / RESULT_FILE for entry in recipe.sources}
    if not all(fetch(file.with_name(REPORT_FILE)).is_file() for file in files.values()):
        run_mining(recipe)
    return files


def training_of_round(
    config: "RunConfig", name: str, mined: dict[str, Path], start: Path | None = None
) -> "RunConfig":
    """The recipe of a round: another name, and mined rows in place of the sources they came from.

    With a model to start from, stages of kind mntp are left out: they prepare a base model.
    """
    from rayembed.config.loading import validate_config

    raw: dict[str, Any] = config.model_dump(mode="json")
    raw["name"] = name
    if start is not None:
        raw |= {"base_model": str(start), "base_layers": None}
        raw["stages"] = [stage for stage in raw["stages"] if stage["kind"] != "mntp"]
    for source, path in mined.items():
        raw["data"]["sources"][f"{source}-mined"] = {
            "path": str(path), "kind": "pairs", "derived_from": source,
        }  # fmt: skip
    for stage in raw["stages"]:
        for entry in stage["blend"]:
            if entry["source"] in mined:
                entry["source"], entry["mining"] = f"{entry['source']}-mined", None
    return validate_config(raw, origin=name)


def mining_of_round(recipe: "MiningRecipe", name: str, model: Path | None) -> "MiningRecipe":
    """The mining recipe with a folder of its own, and the last model in place of all teachers."""
    from rayembed.mining.config import CheckpointTeacher

    update: dict[str, Any] = {"output": f"{recipe.output}/{name}"}
    if model is not None:
        sources = tuple(entry.model_copy(update={"teachers": None}) for entry in recipe.sources)
        teacher = CheckpointTeacher(kind="checkpoint", path=str(model))
        update |= {"teachers": {TEACHER: teacher}, "sources": sources}
    return recipe.model_copy(update=update)

"""A whole training run: prepare, train stage after stage on Ray Train, export.

Everything is resumable: a finished stage is not trained again, an unfinished one continues from its last
committed checkpoint, and a run folder that was started with another recipe is refused.
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError
from rayembed.common.paths import atomic_write, fetch, resolve
from rayembed.common.ray_cluster import connect, run_apart
from rayembed.config.run import RunConfig
from rayembed.config.training import TrainingConfig
from rayembed.model.base_model import (
    PACKAGED_MODELS,
    build_packaged_model,
    check_length,
    prepare_base_model,
    save_untrained,
)
from rayembed.model.checkpoint import MANIFEST_FILE, read_configuration, read_manifest
from rayembed.model.configuration import ModelConfig
from rayembed.model.export.modules_json import is_modules_folder, read_modules
from rayembed.model.merging import merging_bytes
from rayembed.training.callbacks.trackers import check_trackers
from rayembed.training.checkpoint import STATE_FILE
from rayembed.training.fit import fit_stage, with_device
from rayembed.training.handover import FinishedStage, ModelExport, merge_into_base
from rayembed.training.model import ModelSpec
from rayembed.training.preflight import check_disk, parameter_counts
from rayembed.training.prepare import StageData, resolve_data
from rayembed.training.run_folder import RECIPE_FILE, check_recipe, noted
from rayembed.training.stage import Stage
from rayembed.training.trial import decided
from rayembed.training.validation import Score

logger = logging.getLogger(__name__)


def train(config: RunConfig, score: Score | None = None) -> Path:
    """Train a run to its end and return the model folder.

    Args:
        config: the run.
        score: scores a checkpoint, for a recipe with `validation`: a function that can be pickled, from a
            model folder and a folder for details to the score of each task.

    Raises:
        UserError: anything in the recipe, the data or the machine that stands in the way.
    """
    started = time.monotonic()
    if config.validation is not None and score is None:
        raise ConfigError(
            "the recipe has validation and nothing to score with was given; pass a function `score`, "
            "or remove validation"
        )
    data = resolve_data(config)
    check_trackers(config.training.trackers)
    folder = claim_run_folder(config)
    model_folder = folder / "model"
    if fetch(model_folder / MANIFEST_FILE).is_file():
        logger.info("run %s is finished: %s", config.name, read_manifest(model_folder)["digest"][:12])
        return model_folder
    with noted(folder):
        _train(config, data, score, folder, model_folder)
    logger.info("run %s finished in %.0f s", config.name, time.monotonic() - started)
    return model_folder


def _train(
    config: RunConfig, data: Sequence[StageData], score: Score | None, folder: Path, model_folder: Path
) -> None:
    """Train what is missing of a run and write its model folder."""
    connect(_environment(config.training))
    base = ready_base_model(config)
    model, export = ModelSpec.of(config, base), ModelExport.of(config)
    check_disk(config, model, folder)
    training = with_device(config.training)
    memory = merging_bytes(*parameter_counts(model))
    if not fetch(folder / "untrained" / MANIFEST_FILE).is_file():
        # Under the trained model's contract, so that both are asked in the same words.
        write = partial(
            save_untrained, base, folder / "untrained", export.contract, layers=model.layers,
            config=_declared_model(config),
        )  # fmt: skip
        run_apart(write, what="copying the untrained model", memory=memory)
    finished: list[FinishedStage] = []
    for index, settings in enumerate(config.stages):
        stage_folder = folder / "stages" / f"{index}-{settings.name}"
        trained = stage_folder / "trained"
        if settings.adapters == "merge":
            merge = partial(merge_into_base, model, finished, stage_folder / "base")
            model = run_apart(merge, what="merging adapters into the base model", memory=memory)
        ended = FinishedStage.of(settings, trained)
        if not fetch(trained / STATE_FILE).is_file():
            stage = Stage(
                settings=settings,
                training=training,
                validation=config.validation,
                model=model,
                stream=data[index].prepare(stage_folder, str(base)),
                finished=tuple(finished),
                seed=config.seed,
                export=export,
                run_name=config.name,
                run_folder=folder,
            )
            fit_stage(decided(stage, stage_folder), score, stage_folder, trained)
        finished.append(ended)
    write = partial(export.write, model, finished, model_folder)
    run_apart(write, what="writing the trained model", memory=memory)


def _declared_model(config: RunConfig) -> ModelConfig | None:
    """How the base model of a run attends and pools, where its folder says so."""
    folder = fetch(resolve(config.base_model), weights=False)
    if (folder / MANIFEST_FILE).is_file():
        return read_configuration(folder)[1]
    return read_modules(folder).model if is_modules_folder(folder) else None


def ready_base_model(config: RunConfig) -> Path | str:
    """The base model of a run; a packaged one is built in a process of its own."""

    def build(name: str, folder: Path, **options: Any) -> None:
        making = partial(build_packaged_model, name, folder, **options)
        run_apart(making, what=f"building {name}", memory=PACKAGED_MODELS[name].memory)

    base = prepare_base_model(
        config.base_model, resolve(config.models_directory), layers=config.base_layers, build=build
    )
    check_length(base, config.contract)
    return base


def claim_run_folder(config: RunConfig) -> Path:
    """Folder of the run, with the resolved recipe in it.

    Raises:
        ConfigError: the folder belongs to a run with another recipe.
    """
    folder = resolve(config.output) / config.name
    path = fetch(folder / RECIPE_FILE)
    if path.is_file():
        check_recipe(path.read_text(), config.to_yaml(), f"{folder} was started with")
    atomic_write(path, config.to_yaml())
    return folder


def _environment(training: TrainingConfig) -> dict[str, str]:
    """What Ray Train reads from the environment of its processes."""
    if training.min_workers is None:
        return {}
    # Ray counts a lost node for up to 20 s more and then waits for its place before it counts again.
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    return {name: os.environ.get(name, "20")}

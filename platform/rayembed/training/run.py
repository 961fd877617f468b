"""A whole training run: prepare, train stage after stage on Ray Train, export.

Everything is resumable: a finished stage is not trained again, an unfinished one continues from its last
committed checkpoint, and a run folder that was started with another recipe is refused.
"""

import logging
import time
from pathlib import Path

import yaml

from rayembed.common.errors import ConfigError
from rayembed.common.paths import atomic_write, resolve
from rayembed.common.ray_cluster import connect
from rayembed.config import RunConfig
from rayembed.model.base_model import prepare_base_model, save_untrained
from rayembed.model.checkpoint import MANIFEST_FILE, read_manifest
from rayembed.training.checkpointing import STATE_FILE
from rayembed.training.export import export_model, trained_contract
from rayembed.training.fit import fit_stage
from rayembed.training.handover import carried_weights, merge_into_base
from rayembed.training.preflight import check_resources
from rayembed.training.prepare import check_sources, prepare_stage
from rayembed.training.run_folder import RECIPE_FILE, first_difference, noted
from rayembed.training.stage_run import StageRun
from rayembed.training.trackers import check_trackers
from rayembed.training.validation import Scorer

logger = logging.getLogger(__name__)


def train(config: RunConfig, scorer: Scorer | None = None) -> Path:
    """Train a run to its end and return the model folder.

    Args:
        config: the run.
        scorer: scores checkpoints, for a recipe with `validation`.

    Raises:
        UserError: anything in the recipe, the data or the machine that stands in the way.
    """
    started = time.monotonic()
    if config.validation is not None and scorer is None:
        raise ConfigError(
            "the recipe has validation and nothing to score with was given; pass a scorer, "
            "or remove validation"
        )
    check_sources(config)
    check_trackers(config.training.trackers)
    folder = claim_run_folder(config)
    model_folder = folder / "model"
    if (model_folder / MANIFEST_FILE).is_file():
        logger.info("run %s is finished: %s", config.name, read_manifest(model_folder)["digest"][:12])
        return model_folder
    with noted(folder):
        _train(config, scorer, folder, model_folder)
    logger.info("run %s finished in %.0f s", config.name, time.monotonic() - started)
    return model_folder


def _train(config: RunConfig, scorer: Scorer | None, folder: Path, model_folder: Path) -> None:
    """Train what is missing of a run and write its model folder."""
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    check_resources(config, base, folder)
    connect()
    if not (folder / "untrained" / MANIFEST_FILE).is_file():
        # Under the trained model's contract, so that both are asked in the same words.
        save_untrained(base, folder / "untrained", trained_contract(config), layers=config.base_layers)
    finished: list[Path] = []
    stage_base = base
    for index, stage in enumerate(config.stages):
        stage_folder = folder / "stages" / f"{index}-{stage.name}"
        trained = stage_folder / "trained"
        if stage.adapters == "merge":
            weights = carried_weights(config, finished)
            stage_base = merge_into_base(config, stage_base, weights, base, stage_folder / "base")
        if not (trained / STATE_FILE).is_file():
            stream = prepare_stage(config, index, stage_folder, str(base))
            run = StageRun(config, index, stage_base, base, stream, tuple(finished), folder)
            fit_stage(run, scorer, stage_folder, trained)
        finished.append(trained)
    export_model(config, stage_base, base, finished, model_folder)


def claim_run_folder(config: RunConfig) -> Path:
    """Folder of the run, with the resolved recipe in it.

    Raises:
        ConfigError: the folder belongs to a run with another recipe.
    """
    folder = resolve(config.output) / config.name
    path = folder / RECIPE_FILE
    if path.is_file():
        difference = first_difference(yaml.safe_load(path.read_text()), config.model_dump(mode="json"))
        if difference:
            raise ConfigError(
                f"{folder} was started with another recipe ({difference}); set name to start another run, or "
                "remove the folder"
            )
    atomic_write(path, config.to_yaml())
    return folder

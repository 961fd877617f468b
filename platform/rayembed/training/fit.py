"""One stage on Ray Train, through lost and returning nodes, to the checkpoint that it ends with."""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from rayembed.common.errors import ResourceError, TrainingError, UserError
from rayembed.common.paths import atomic_directory, fetch, remove
from rayembed.common.ray_cluster import cluster_gpus, joins_cluster
from rayembed.config.training import TrainingConfig
from rayembed.data.stream import lanes_written
from rayembed.training.callbacks.bad_batches import STOPPED_FILE
from rayembed.training.callbacks.checkpoints import SCORE
from rayembed.training.checkpoint import (
    FOLDER,
    STATE_FILE,
    CheckpointStore,
    check_training_state,
    next_step,
    open_store,
)
from rayembed.training.stage import Stage
from rayembed.training.trainer import train_stage
from rayembed.training.validation import Score, kept_checkpoint, report_scores, validation_task

logger = logging.getLogger(__name__)


def fit_stage(stage: Stage, score: Score | None, stage_folder: Path, trained: Path) -> None:
    """Train one stage and keep its last or best checkpoint as the stage's result.

    Args:
        stage: which stage.
        score: how its checkpoints are scored; None: not at all.
        stage_folder: where Ray Train keeps checkpoints; what is there is continued.
        trained: folder of the result.

    Raises:
        TrainingError: a bad batch ended the stage.
        UserError: what a worker found wrong with recipe, data or machine.
    """
    _check_cluster(stage)
    store = open_store(
        stage.training.checkpoint_storage,
        run_name=stage.run_name,
        recipe=stage.export.recipe,
        stage_folder=stage_folder,
    )
    with lanes_written(stage.stream, store.newest_step()) as stream:
        _fit_to_the_end(replace(stage, stream=stream), score, store, stage_folder, trained)


def _fit_to_the_end(
    stage: Stage, score: Score | None, store: CheckpointStore, stage_folder: Path, trained: Path
) -> None:
    stopped = stage.run_folder / STOPPED_FILE
    remove(stopped)
    while True:
        result = _fit(stage, score, store, stage_folder)
        if fetch(stopped).is_file():
            raise TrainingError(
                f"{stopped.read_text()}; lower the learning rate, remove the rows, or continue with "
                "--set training.on_bad_batch=skip"
            )
        assert result.checkpoint is not None, "workers leave after a checkpoint"
        with result.checkpoint.as_directory() as folder:
            checkpoint = Path(folder)
            # One that could not be written is an empty folder; the last one of a stage never is.
            if (checkpoint / STATE_FILE).is_file() and next_step(checkpoint) == stage.settings.steps:
                report_scores(stage)
                kept = kept_checkpoint(stage, stage_folder, checkpoint)
                check_training_state(kept)
                with atomic_directory(trained) as temporary:
                    shutil.copytree(kept, temporary, dirs_exist_ok=True)
                return
        logger.warning("stage %s: workers were taken away; it goes on with what is left", stage.name)


def _fit(stage: Stage, score: Score | None, store: CheckpointStore, stage_folder: Path) -> ray.train.Result:
    """Train to the last step, or to the one after which workers are taken away."""
    training = stage.training
    store.mend()
    trainer = TorchTrainer(
        partial(train_stage, stage),  # as a configuration, Ray's controller would import all that trains
        scaling_config=_scaling(training),
        torch_config=TorchConfig(backend="nccl" if stage.device == "cuda" else "gloo"),
        run_config=ray.train.RunConfig(
            name=FOLDER,
            # Read by DeepSpeed as it is imported. A worker without a GPU may see those of its node.
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": stage.device}},  # type: ignore[call-arg]  # of v2
            storage_path=str(PurePosixPath(store.path).parent),
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=training.keep_checkpoints, checkpoint_score_attribute=SCORE
            ),
        ),
        validation_config=validation_task(stage, score, stage_folder),
    )
    try:
        return trainer.fit()
    except ray.train.WorkerGroupError as error:
        mistakes = [failure for failure in error.worker_failures.values() if isinstance(failure, UserError)]
        if mistakes:
            raise mistakes[0] from error
        raise


def with_device(training: TrainingConfig) -> TrainingConfig:
    """The settings with `device` decided for the connected cluster: cuda or cpu.

    Raises:
        ResourceError: no GPU can come, or nobody can tell whether one can.
    """
    if training.device == "cpu":
        return training
    gpus = cluster_gpus(training.accelerator_type)
    kind = f"GPU {training.accelerator_type}" if training.accelerator_type else "GPU"
    needed = training.fewest_workers
    if training.device == "auto" and gpus.startable is None and not gpus.now:
        raise ResourceError(
            f"training.device is auto, no node has a {kind}, and the cluster's autoscaler does not tell "
            "whether it can start one that has; set training.device to cuda or cpu"
        )
    if training.device == "auto" and not gpus.most:
        none = f"no node has a {kind} and no autoscaler can start one that has"
        if training.accelerator_type:
            raise ResourceError(
                f"training.accelerator_type: {none}; remove it, or set training.device to cuda to wait for "
                "nodes that join later"
            )
        logger.info(
            "training uses CPUs: %s; set training.device to cuda to wait for nodes that join later", none
        )
        return training.model_copy(update={"device": "cpu"})
    if not gpus.most and gpus.startable is not None and not joins_cluster():
        raise ResourceError(
            f"training.device is cuda and no node of this cluster has a {kind} or can get one; set it to "
            "cpu, or add a node type with GPUs"
        )
    logger.info(
        "training uses %d GPUs: nodes that are up have %d, the autoscaler can start nodes with %s",
        training.workers,
        gpus.now,
        "an unknown number" if gpus.startable is None else gpus.startable,
    )
    if gpus.startable is not None and needed > gpus.most:
        logger.warning("training waits for %d GPUs; otherwise lower training.workers", needed)
    return training.model_copy(update={"device": "cuda"})


def _scaling(training: TrainingConfig) -> ray.train.ScalingConfig:
    """Workers and what each reserves."""
    on_gpus = training.device == "cuda"
    elastic = training.min_workers is not None
    resources = {"CPU": training.cpus_per_worker} | ({"GPU": 1} if on_gpus else {})
    return ray.train.ScalingConfig(
        num_workers=(training.min_workers, training.workers) if elastic else training.workers,  # type: ignore[arg-type]  # of v2
        elastic_resize_monitor_interval_s=training.resize_seconds,  # type: ignore[call-arg]
        use_gpu=on_gpus,
        resources_per_worker=resources,
        label_selector=training.worker_labels or None,
        accelerator_type=training.accelerator_type if on_gpus else None,
    )


def _check_cluster(stage: Stage) -> None:
    """Warn of what has to wait for more CPUs."""
    training, validation = stage.training, stage.validation
    present = ray.cluster_resources().get("CPU", 0.0)
    per_worker = training.cpus_per_worker
    fewest = training.fewest_workers
    needed = fewest * per_worker
    if needed > present:
        logger.warning(
            "%d workers need %g CPUs, the cluster has %g: training waits until nodes join; otherwise lower "
            "training.cpus_per_worker or training.workers",
            fewest,
            needed,
            present,
        )
    if validation and needed <= present < training.workers * per_worker + validation.cpus:
        logger.warning(
            "a validation needs %g CPUs next to the %g of training, the cluster has %g: checkpoints are "
            "scored when training is done; lower validation.cpus to have it earlier",
            validation.cpus,
            training.workers * per_worker,
            present,
        )

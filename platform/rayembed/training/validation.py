"""Scores of checkpoints while training goes on, and the best checkpoint by them.

Ray Train starts the validation of a checkpoint that it has recorded as a task next to the workers, one at a
time, and keeps that checkpoint until it is done. Training does not wait for it, but a stage ends when all
its checkpoints are scored. The caller of `train` says how; training knows nothing of evaluation.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch.utils.tensorboard import SummaryWriter

from rayembed.common import logs
from rayembed.common.errors import UserError
from rayembed.common.paths import atomic_directory, atomic_write, fetch, here, push
from rayembed.common.ray_cluster import run_apart
from rayembed.config.run import ValidationConfig
from rayembed.model.merging import merging_bytes
from rayembed.training.callbacks.trackers import start_trackers
from rayembed.training.checkpoint import STATE_FILE
from rayembed.training.handover import FinishedStage
from rayembed.training.preflight import parameter_counts
from rayembed.training.run_folder import VALIDATION_FILE
from rayembed.training.stage import Stage

logger = logging.getLogger(__name__)

BEST_FOLDER = "best"
RECORD_FILE = "validation.json"

Score = Callable[[Path, Path], dict[str, float]]
"""Model folder, folder for details -> score of each task. Sent to other processes, so it can be pickled."""


def validation_due(stage: Stage, next_step: int) -> bool:
    """Whether the checkpoint after so many steps of the stage is scored."""
    validation = stage.validation
    if validation is None or stage.settings.kind == "mntp":
        return False
    every = validation.every or stage.training.checkpoint_every
    return next_step % every == 0 or next_step == stage.settings.steps


def requested_validation(stage: Stage, next_step: int) -> ray.train.ValidationTaskConfig | bool:
    """What a report of the checkpoint after so many steps asks of Ray Train."""
    return validation_due(stage, next_step) and ray.train.ValidationTaskConfig(
        fn_kwargs={"next_step": next_step}
    )


def validation_task(stage: Stage, score: Score | None, folder: Path) -> ray.train.ValidationConfig | None:
    """What Ray Train needs to know to validate checkpoints of a stage; None where it does not.

    Args:
        stage: whose checkpoints.
        score: how; None: not at all.
        folder: of the stage, for the best checkpoint.
    """
    if score is None:
        return None
    # The task waits for that of the score and takes nothing itself.
    return ray.train.ValidationConfig(
        fn=partial(validate, stage=stage, score=score, folder=folder), ray_remote_kwargs={"num_cpus": 0}
    )


def validate(
    checkpoint: ray.train.Checkpoint, *, next_step: int, stage: Stage, score: Score, folder: Path
) -> dict[str, Any]:
    """Score a checkpoint, note it in the run folder, and keep the checkpoint if it is the best of its stage.

    Returns:
        the record, empty when the scoring failed or the checkpoint could not be written.
    """
    logs.configure()
    step = stage.steps_before + next_step
    with checkpoint.as_directory() as directory:
        if not (Path(directory) / STATE_FILE).is_file():
            return {}  # It could not be written, which the log has said.
        scores = _scores_apart(stage, Path(directory), score, folder / "validation" / f"step-{step}")
        if not scores:
            return {}
        mean = sum(scores.values()) / len(scores)
        record = {"stage": stage.name, "step": step, "score": mean, "scores": scores}
        _note(stage.run_folder, record)
        best = best_record(folder)
        if best is None or mean > best["score"]:
            with atomic_directory(folder / BEST_FOLDER) as temporary:
                shutil.copytree(directory, temporary, dirs_exist_ok=True)
                atomic_write(temporary / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    logger.info("stage %s: score %.4f after step %d", stage.name, mean, step)
    return record


def _scores_apart(stage: Stage, checkpoint: Path, score: Score, output: Path) -> dict[str, float]:
    """Scores by task, from a process of its own: Ray Train ends with a validation whose process is killed.

    Empty when the scoring failed, which is logged.
    """
    assert stage.validation is not None, "checkpoints are scored where the recipe says so"
    # The score loads the model that was written before.
    parameters, trained = parameter_counts(stage.model)
    try:
        return run_apart(
            partial(exported_scores, stage, checkpoint, score, output),
            what=f"scoring {output.name}",
            memory=max(merging_bytes(parameters, trained), 2**30 + 4 * parameters),
            cpus=stage.validation.cpus,
            gpus=stage.validation.gpus,
        )
    except (ray.exceptions.RayError, UserError) as error:
        logger.warning("stage %s: no score for %s: %s", stage.name, output.name, error)
        return {}


def exported_scores(stage: Stage, checkpoint: Path, score: Score, output: Path) -> dict[str, float]:
    """Scores of the model that a checkpoint exports to."""
    with tempfile.TemporaryDirectory(prefix="rayembed-validation-") as folder:
        model = Path(folder) / "model"
        stage.export.write(
            stage.model, [*stage.finished, FinishedStage.of(stage.settings, checkpoint)], model
        )
        return score(model, output)


def best_record(folder: Path) -> dict[str, Any] | None:
    """Record of a stage's best checkpoint, which is in the folder `best`; None before the first."""
    path = fetch(folder / BEST_FOLDER / RECORD_FILE)
    return json.loads(path.read_text()) if path.is_file() else None


def report_scores(stage: Stage) -> None:
    """Send a stage's scores to the trackers, and name checkpoints without; called when all are scored.

    Workers have ended by then, so that no other process writes to the trackers.
    """
    due = [
        stage.steps_before + step
        for step in range(1, stage.settings.steps + 1)
        if validation_due(stage, step)
    ]
    records = [record for record in _noted(stage.run_folder) if record["stage"] == stage.name]
    missing = sorted(set(due) - {record["step"] for record in records})
    if missing:
        steps = ", ".join(map(str, missing))
        logger.warning("stage %s: checkpoints without a score, after steps %s", stage.name, steps)
    if not records:
        return
    for tracker in start_trackers(stage.training.trackers, stage.run_folder, stage.export.recipe):
        for record in records:
            tracker.log(_scalars(record), record["step"])
        tracker.close()


def kept_checkpoint(stage: Stage, folder: Path, last: Path) -> Path:
    """The checkpoint that the stage ends with.

    Args:
        stage: which stage.
        folder: of the stage.
        last: its last checkpoint.
    """
    validation = stage.validation
    if validation is None or validation.keep == "last" or not validation_due(stage, stage.settings.steps):
        return last
    best = best_record(folder)
    if best is None:
        logger.warning("stage %s: no checkpoint could be scored, the last one is kept", stage.name)
        return last
    logger.info(
        "stage %s ends with its best checkpoint, that after step %d with a score of %.4f",
        stage.name,
        best["step"],
        best["score"],
    )
    return fetch(folder / BEST_FOLDER)


def score_of_model(run_folder: Path, validation: ValidationConfig | None) -> float | None:
    """Score of the checkpoint that a finished run's model was made of; None where none was scored."""
    records = sorted(_noted(run_folder), key=lambda record: record["step"])
    scores = [record["score"] for record in records if record["stage"] == records[-1]["stage"]]
    if validation is None or not scores:
        return None
    return max(scores) if validation.keep == "best" else scores[-1]


def _noted(run_folder: Path) -> list[dict[str, Any]]:
    """Records of all scored checkpoints."""
    path = fetch(run_folder / VALIDATION_FILE)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _note(run_folder: Path, record: dict[str, Any]) -> None:
    """Add a record; one of the same step, whose task was killed after it, makes room."""
    records = [other for other in _noted(run_folder) if other["step"] != record["step"]]
    lines = [json.dumps(line) + "\n" for line in (*records, record)]
    atomic_write(run_folder / VALIDATION_FILE, "".join(lines))
    folder = here(run_folder) / "tensorboard"
    with SummaryWriter(str(folder), filename_suffix=".validation") as writer:
        for name, value in _scalars(record).items():
            writer.add_scalar(name, value, record["step"])
    push(folder)


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record under the names that TensorBoard and other trackers show."""
    scores = {"score": record["score"], **record["scores"]}
    return {f"validation/{name}": value for name, value in scores.items()}

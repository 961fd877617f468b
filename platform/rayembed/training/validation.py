"""Scores of checkpoints while training goes on, and the best checkpoint by them.

Ray Train starts the validation of a checkpoint that it has recorded as a task beside the workers, one at a
time, and keeps that checkpoint until it is done. Training does not wait for it, but a stage ends when all its
checkpoints are scored. How a model is scored is handed in: training knows nothing of evaluation.
"""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray.train
from torch.utils.tensorboard import SummaryWriter

from rayembed.common import logs
from rayembed.common.paths import atomic_directory, atomic_write
from rayembed.training.checkpointing import STATE_FILE
from rayembed.training.export import export_model
from rayembed.training.run_folder import VALIDATION_FILE
from rayembed.training.stage_run import StageRun
from rayembed.training.trackers import start_trackers

logger = logging.getLogger(__name__)

BEST_FOLDER = "best"
RECORD_FILE = "validation.json"

Export = Callable[[Path, Path], object]


class Scorer(Protocol):
    """Scores checkpoints; sent to other processes, so it can be pickled."""

    def score(self, checkpoint: Path, step: int, *, output: Path, export: Export) -> dict[str, float]:
        """Scores by task; empty when the scoring failed.

        Args:
            checkpoint: folder of a training state.
            step: steps taken, as a label.
            output: where details may be kept.
            export: writes the model of a checkpoint to a new folder.
        """


def validation_due(run: StageRun, next_step: int) -> bool:
    """Whether the checkpoint after so many steps of the stage is scored."""
    validation = run.config.validation
    if validation is None or run.stage.kind == "mntp":
        return False
    every = validation.every or run.config.training.checkpoint_every
    return next_step % every == 0 or next_step == run.stage.steps


def requested_validation(run: StageRun, next_step: int) -> ray.train.ValidationTaskConfig | bool:
    """What a report of the checkpoint after so many steps asks of Ray Train."""
    return validation_due(run, next_step) and ray.train.ValidationTaskConfig(
        fn_kwargs={"next_step": next_step}
    )


def validation_task(run: StageRun, scorer: Scorer | None, folder: Path) -> ray.train.ValidationConfig | None:
    """What Ray Train needs to know to validate checkpoints of a stage; None where it does not.

    Args:
        run: the stage.
        scorer: how; None: not at all.
        folder: of the stage, for the best checkpoint.
    """
    if scorer is None:
        return None
    # The task waits for the scorer's own and takes nothing itself.
    return ray.train.ValidationConfig(
        fn=partial(validate, run=run, scorer=scorer, folder=folder), ray_remote_kwargs={"num_cpus": 0}
    )


def validate(
    checkpoint: ray.train.Checkpoint, *, next_step: int, run: StageRun, scorer: Scorer, folder: Path
) -> dict[str, Any]:
    """Score a checkpoint, note it in the run folder, and keep the checkpoint if it is the best of its stage.

    Returns:
        the record, empty when the scoring failed or the checkpoint could not be written.
    """
    logs.configure()
    step = run.steps_before + next_step
    with checkpoint.as_directory() as directory:
        if not (Path(directory) / STATE_FILE).is_file():
            return {}  # It could not be written, which the log has said.
        scores = scorer.score(
            Path(directory), step, output=folder / "validation", export=partial(_export, run)
        )
        if not scores:
            return {}
        mean = sum(scores.values()) / len(scores)
        record = {"stage": run.stage.name, "step": step, "score": mean, "scores": scores}
        _note(run.run_folder, record)
        best = best_record(folder)
        if best is None or mean > best["score"]:
            with atomic_directory(folder / BEST_FOLDER) as temporary:
                shutil.copytree(directory, temporary, dirs_exist_ok=True)
                atomic_write(temporary / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    logger.info("stage %s: score %.4f after step %d", run.stage.name, mean, step)
    return record


def best_record(folder: Path) -> dict[str, Any] | None:
    """Record of a stage's best checkpoint, which is in the folder `best`; None before the first."""
    path = folder / BEST_FOLDER / RECORD_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def report_scores(run: StageRun) -> None:
    """Send a stage's scores to the trackers, and name checkpoints without; called when all are scored.

    Workers have ended by then, so that no other process writes to the trackers.
    """
    due = [run.steps_before + step for step in range(1, run.stage.steps + 1) if validation_due(run, step)]
    records = [record for record in _noted(run.run_folder) if record["stage"] == run.stage.name]
    missing = sorted(set(due) - {record["step"] for record in records})
    if missing:
        steps = ", ".join(map(str, missing))
        logger.warning("stage %s: checkpoints without a score, after steps %s", run.stage.name, steps)
    if not records:
        return
    settings = run.config.model_dump(mode="json")
    for tracker in start_trackers(run.config.training.trackers, run.run_folder, settings):
        for record in records:
            tracker.log(_scalars(record), record["step"])
        tracker.close()


def kept_checkpoint(run: StageRun, folder: Path, last: Path) -> Path:
    """The checkpoint that the stage ends with.

    Args:
        run: the stage.
        folder: of the stage.
        last: its last checkpoint.
    """
    validation = run.config.validation
    if validation is None or validation.keep == "last" or not validation_due(run, run.stage.steps):
        return last
    best = best_record(folder)
    if best is None:
        logger.warning("stage %s: no checkpoint could be scored, the last one is kept", run.stage.name)
        return last
    logger.info(
        "stage %s ends with its best checkpoint, that after step %d with a score of %.4f",
        run.stage.name,
        best["step"],
        best["score"],
    )
    return folder / BEST_FOLDER


def _export(run: StageRun, checkpoint: Path, folder: Path) -> None:
    export_model(run.config, run.base, run.original_base, [*run.previous, checkpoint], folder)


def _noted(run_folder: Path) -> list[dict[str, Any]]:
    """Records of all scored checkpoints."""
    path = run_folder / VALIDATION_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _note(run_folder: Path, record: dict[str, Any]) -> None:
    """Add a record; one of the same step, whose task was killed after it, makes room."""
    records = [other for other in _noted(run_folder) if other["step"] != record["step"]]
    lines = [json.dumps(line) + "\n" for line in (*records, record)]
    atomic_write(run_folder / VALIDATION_FILE, "".join(lines))
    with SummaryWriter(str(run_folder / "tensorboard"), filename_suffix=".validation") as writer:
        for name, value in _scalars(record).items():
            writer.add_scalar(name, value, record["step"])


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record under the names that TensorBoard and other trackers show."""
    scores = {"score": record["score"], **record["scores"]}
    return {f"validation/{name}": value for name, value in scores.items()}

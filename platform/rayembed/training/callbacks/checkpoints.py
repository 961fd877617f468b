"""Checkpoints of a stage: written by a thread of Ray Train while training goes on, and found again."""

import contextlib
import logging
import threading
import time
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ray.train
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from rayembed.common.errors import CheckpointError, ResourceError
from rayembed.training.callbacks import Callback, TrainerState
from rayembed.training.checkpoint import STATE_FILE, CheckpointStore, TrainingState, load_training_state
from rayembed.training.deepspeed import optimizer_steps, read_state
from rayembed.training.stage import Stage
from rayembed.training.validation import requested_validation, validation_due

SCORE = "score_of_keeping"
"""Metric of a report by which Ray Train keeps checkpoints: the step, so that the newest are kept."""

FAILURES_IN_A_ROW = 3
"""So many checkpoints that cannot be written end the attempt; fewer are reported and training goes on."""

logger = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves the state when it is due, and when all leave.

    A step waits only while the state is copied to memory. One checkpoint is written at a time: the next waits
    for it, so that there is at most one copy.
    """

    def __init__(self, state: TrainerState):
        super().__init__(state)
        self._store = CheckpointStore.of_worker()
        self._written = threading.Event()
        self._written.set()
        self._failures = 0
        self._began = time.perf_counter()
        self._seconds = 0.0

    def after_step(self, next_step: int) -> None:
        """Save what a run needs to go on at `next_step`."""
        if self.state.leaving or checkpoint_due(self.state.stage, next_step):
            started = time.perf_counter()
            self._save(next_step)
            seconds = time.perf_counter() - started
            self._seconds += seconds
            self.state.timer.add("checkpoint", seconds)  # of the next step; the line of this one is written

    def close(self) -> None:
        """Say how long training was held up."""
        if self.state.rank == 0:
            seconds = time.perf_counter() - self._began
            logger.info(
                "stage %s: checkpoints held training up for %.2f s, %.2f %% of its %.0f s",
                self.state.stage.name, self._seconds, 100 * self._seconds / seconds, seconds,
            )  # fmt: skip

    def _save(self, next_step: int) -> None:
        """Copy the state and leave the writing to Ray Train's thread; called by all ranks."""
        self._written.wait()
        stage, wrapped = self.state.stage, self.state.wrapped
        metrics = {"stage": stage.name, "next_step": next_step, SCORE: next_step}
        read = read_state(wrapped, keep=self.state.rank == 0)
        state = TrainingState(stage.name, next_step, optimizer_steps(wrapped), *read)
        checkpoint, name = None, None
        if self.state.rank == 0:
            name = self._store.new_name(next_step)
            checkpoint = self._store.checkpoint(name)
            self._written.clear()
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(self._write, state, metrics),
            delete_local_checkpoint_after_upload=False,
            validation=requested_validation(stage, next_step),
        )

    def _write(
        self, saved: TrainingState, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Write a checkpoint to its place; called on the first rank by Ray Train's thread.

        Ray Train has no word for a checkpoint that was not written. Of such a one an empty folder is left,
        with the lowest score: it is the first to be removed, and no written one goes in its place.

        Raises:
            ResourceError: it is the last of the stage or one too many that cannot be written.
        """
        try:
            self._store.write(name, saved)
            self._failures = 0
        except OSError as error:
            self._failures += 1
            metrics[SCORE] = -1
            reason = (
                f"stage {saved.stage}: the checkpoint after step {saved.next_step} could not be written to "
                f"{checkpoint.path} ({str(error).splitlines()[0]})"
            )
            cleared = self._store.clear(name)
            last = saved.next_step == self.state.stage.settings.steps
            if last or not cleared or self._failures == FAILURES_IN_A_ROW:
                raise ResourceError(
                    f"{reason}; those before it are kept: free space there, then run the same command again"
                ) from error
            logger.warning("%s; training goes on and those before it are kept", reason)
        else:
            with contextlib.suppress(OSError):  # what is left goes with the stage
                self.state.stage.stream.lanes.drop_before(saved.next_step)
        finally:
            self._written.set()
        return checkpoint


def checkpoint_due(stage: Stage, next_step: int) -> bool:
    """Whether a checkpoint is due before this step, for itself or to be validated."""
    last = next_step == stage.settings.steps
    return last or next_step % stage.training.checkpoint_every == 0 or validation_due(stage, next_step)


def last_good_state(stage: Stage) -> TrainingState | None:
    """State of the newest checkpoint that is complete and undamaged; None when there is none.

    The first rank decides and tells the others. Called by all ranks, before anything is reported.

    Raises:
        CheckpointError: another rank does not read what the first one read.
    """
    store = CheckpointStore.of_worker()
    rank = ray.train.get_context().get_world_rank()
    name, state = _newest_good(store, stage.name) if rank == 0 else (None, None)
    reported = _reported_names() if rank == 0 else set()
    name, known = broadcast_from_rank_zero((name, name in reported))
    if name is None:
        return None
    if rank == 0:
        _remove_leftovers(store, keep={name, *reported})
    else:
        with store.checkpoint(name).as_directory() as folder:
            state = load_training_state(Path(folder))
    assert state is not None, "the first rank has read the state that it names"
    if not known:
        # So that Ray Train counts it among those that it keeps and removes.
        ray.train.report(
            {"stage": stage.name, "next_step": state.next_step, SCORE: state.next_step},
            checkpoint=store.checkpoint(name) if rank == 0 else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            validation=requested_validation(stage, state.next_step),
        )
    return state


def _newest_good(store: CheckpointStore, stage_name: str) -> tuple[str | None, TrainingState | None]:
    # A folder without its last file is what an attempt leaves that ended while it wrote.
    names = [name for name in store.names() if store.exists(f"{name}/{STATE_FILE}")]
    for name in names:
        try:
            with store.checkpoint(name).as_directory() as folder:
                return name, load_training_state(Path(folder))
        except CheckpointError as error:
            logger.warning(
                "stage %s: %s; the one before it is used", stage_name, str(error).partition(";")[0]
            )
    if names:
        logger.warning("stage %s: all its checkpoints are damaged, it starts at step 0", stage_name)
    return None, None


def _reported_names() -> set[str]:
    """Names of the checkpoints that Ray Train knows of."""
    reported = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
    return {PurePosixPath(entry.checkpoint.path).name for entry in reported}


def _remove_leftovers(store: CheckpointStore, keep: set[str]) -> None:
    """Remove what earlier attempts wrote without reporting it, which Ray Train would never remove."""
    for name in store.names():
        if name not in keep:
            store.filesystem.delete_dir(f"{store.path}/{name}")

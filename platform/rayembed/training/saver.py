"""Saving the state of a stage from a background thread of Ray Train while training goes on."""

import logging
import threading
import time
from functools import partial
from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from rayembed.common.errors import ResourceError
from rayembed.training.checkpoint_store import SCORE, CheckpointStore
from rayembed.training.checkpointing import TrainingState
from rayembed.training.engine import optimizer_steps, read_state
from rayembed.training.stage_run import StageRun
from rayembed.training.validation import requested_validation, validation_due

FAILURES_IN_A_ROW = 3
"""So many checkpoints that cannot be written end the attempt; fewer are reported and training goes on."""

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Saves the checkpoints of a stage; made on all ranks.

    A step waits only while the state is copied to memory. One checkpoint is written at a time: the next waits
    for it, so that there is at most one copy.

    Attributes:
        seconds: that saving has held training up so far.
    """

    def __init__(self, run: StageRun, rank: int):
        self.seconds = 0.0
        self._run = run
        self._rank = rank
        self._store = CheckpointStore.of_worker()
        self._written = threading.Event()
        self._written.set()
        self._failures = 0

    def due(self, next_step: int) -> bool:
        """Whether a checkpoint is due before this step, for itself or to be validated."""
        every = self._run.config.training.checkpoint_every
        last = next_step == self._run.stage.steps
        return last or next_step % every == 0 or validation_due(self._run, next_step)

    def save(self, engine: Any, next_step: int) -> float:
        """Copy the state and leave the writing to Ray Train's thread; called by all ranks.

        Returns:
            seconds that this took.
        """
        started = time.perf_counter()
        self._written.wait()
        stage = self._run.stage.name
        metrics = {"stage": stage, "next_step": next_step, SCORE: next_step}
        state = TrainingState(stage, next_step, optimizer_steps(engine), *read_state(engine))
        checkpoint, name = None, None
        if self._rank == 0:
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
            validation=requested_validation(self._run, next_step),
        )
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return seconds

    def _write(
        self, state: TrainingState, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Write a checkpoint to its place; called on the first rank by Ray Train's thread.

        Ray Train has no word for a checkpoint that was not written. Of such a one an empty folder is left,
        with the lowest score: it is the first to be removed, and no written one goes in its place.

        Raises:
            ResourceError: it is the last of the stage or one too many that cannot be written.
        """
        try:
            self._store.write(name, state)
            self._failures = 0
        except OSError as error:
            self._failures += 1
            metrics[SCORE] = -1
            reason = (
                f"stage {state.stage}: the checkpoint after step {state.next_step} could not be written to "
                f"{checkpoint.path} ({str(error).splitlines()[0]})"
            )
            left = self._store.clear(name)
            if not left or self._failures == FAILURES_IN_A_ROW or state.next_step == self._run.stage.steps:
                raise ResourceError(
                    f"{reason}; those before it are kept: free space there, then run the same command again"
                ) from error
            logger.warning("%s; training goes on and those before it are kept", reason)
        finally:
            self._written.set()
        return checkpoint

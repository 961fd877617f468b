"""The training loop of a stage, as every rank runs it. It knows no concern; those are callbacks.

One step, in the order of reading:
    `run_steps`              batch -> step -> callbacks                                          (this file)
    `ContrastiveStep.backward`  batch -> vectors -> gather -> loss -> gradient in the parameters (step.py)
    `infonce`                vectors -> loss of each row                                 (losses/infonce.py)
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Sequence

import ray.train
import torch

from rayembed.common import logs
from rayembed.common.device import resolve_device
from rayembed.config.stage import StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.data.stream import stream_batches
from rayembed.model.precision import resolve_precision
from rayembed.training import deepspeed
from rayembed.training.callbacks import Callback, TrainerState
from rayembed.training.callbacks.bad_batches import BadBatches
from rayembed.training.callbacks.checkpoints import Checkpoints, last_good_state
from rayembed.training.callbacks.metrics import Metrics
from rayembed.training.callbacks.preemption import Preemption
from rayembed.training.preflight import check_memory
from rayembed.training.resources import advising_on_memory
from rayembed.training.stage import Stage
from rayembed.training.start import restore_moments, start_model, step_of
from rayembed.training.step import BadBatch, Step, StepOutput

logger = logging.getLogger(__name__)


def callbacks_of(state: TrainerState) -> list[Callback]:
    """The concerns of training, in the order in which they are called."""
    return [
        Preemption(state),
        BadBatches(state),
        Metrics(state),
        Checkpoints(state),  # after those that end the stage, so that the last step is saved
    ]


def train_stage(stage: Stage) -> None:
    """Train a stage from its start or from the last checkpoint; called by all ranks inside Ray Train.

    Returns before the last step, after a checkpoint, when a worker is about to be taken away.
    """
    logs.configure()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    set_threads(stage.training.threads_per_worker, context.get_local_world_size())
    device = resolve_device()
    dtype = resolve_precision(stage.training.precision, device)
    steps = stage.settings.steps
    resumed = last_good_state(stage)
    first_step = resumed.next_step if resumed else 0
    if first_step >= steps:
        return
    # The stream begins to fill while the model is built.
    batches = stream_batches(stage.stream, start=first_step, stop=steps, rank=rank, world_size=world_size)
    check_memory(stage.model, stage.training, device, context.get_local_world_size())
    step = step_of(stage, device)
    rows_per_rank = -(-stage.settings.batch_size // world_size)
    wrapped = start_model(stage, resumed, device, dtype, rows_per_rank=rows_per_rank)
    if resumed:
        if rank == 0:
            logger.info(
                "stage %s continues at step %d of %d, %d worker%s",
                stage.name, first_step, steps, world_size, "s" if world_size > 1 else "",
            )  # fmt: skip
        restore_moments(wrapped, resumed, step)
        resumed = None  # weights and moments in fp32, which nobody needs any more
    state = TrainerState(stage, wrapped, device, rank, world_size, first_step)
    run_steps(state, step, batches, callbacks_of(state))


def run_steps(
    state: TrainerState, step: Step, batches: Iterable[TrainingBatch], callbacks: Sequence[Callback]
) -> None:
    """Take the steps of a stage until its batches end or a callback ends it; called by all ranks."""
    with contextlib.ExitStack() as closing:
        for callback in callbacks:
            closing.callback(callback.close)
        state.timer.restart()
        for batch in state.timer.waiting("data", batches):
            for callback in callbacks:
                callback.before_step(batch)
            try:
                output, gradient_norm = take_step(state, step, batch)
            except BadBatch as error:
                for callback in callbacks:
                    callback.on_bad_batch(batch, error)
                if state.stopped:
                    return
            else:
                for callback in callbacks:
                    callback.on_step(batch, output, gradient_norm)
            state.timer.restart()
            for callback in callbacks:
                callback.after_step(batch.step + 1)
            if state.leaving:
                return


def take_step(state: TrainerState, step: Step, batch: TrainingBatch) -> tuple[StepOutput, float]:
    """Gradient and move of one step; called by all ranks.

    Nothing waits for the device before the gradient's norm decides: a loss that is not finite has made the
    gradient so (see `step.spoiled_unless_finite`), and DeepSpeed moves nothing then.

    Returns:
        What the step left behind, and the norm of the gradient before clipping.

    Raises:
        BadBatch: loss or gradient is not finite on some rank; weights and moments are as before.
        ResourceError: the GPU's memory was not enough.
    """
    stage = state.stage
    # Dropout depends on step and rank alone, so a resumed run draws what an unbroken one would.
    seed = (stage.seed * 1_000_003 + stage.steps_before + batch.step) * state.world_size + state.rank
    torch.manual_seed(seed)
    deepspeed.set_learning_rate(state.wrapped, learning_rate_factor(batch.step, stage.settings))
    with advising_on_memory(f"stage {stage.name}: step {batch.step}", stage.training, batch):
        output = step.backward(state.wrapped, batch, state.timer)
        with state.timer.phase("optimizer"):
            gradient_norm = float(deepspeed.take_step(state.wrapped))
    if not math.isfinite(gradient_norm):
        raise BadBatch("the loss or its gradient is not finite")
    return output, gradient_norm


def learning_rate_factor(step: int, settings: StageConfig) -> float:
    """Linear warm-up, then the stage's schedule; one that falls would reach zero one step after the last."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return 1.0
    left = (settings.steps - step) / (settings.steps - settings.warmup_steps)
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_threads(declared: int | None, local_workers: int) -> None:
    """Give this process its share of the machine's cores, or what the recipe says."""
    torch.set_num_threads(declared or max((os.cpu_count() or 1) // local_workers, 1))

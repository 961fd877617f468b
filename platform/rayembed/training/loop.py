"""The training loop of one stage, as every Ray Train worker runs it."""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import ray.train
import ray.train.torch
import torch

from rayembed.common import logs
from rayembed.common.paths import atomic_write
from rayembed.config import StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.data.stream import stream_batches
from rayembed.model.precision import resolve_precision
from rayembed.training import engine as deepspeed_engine
from rayembed.training.bad_batch import STOPPED_FILE, BadBatch, check_finite, name_batch, record_batch
from rayembed.training.build import build_engine, restore_moments
from rayembed.training.checkpoint_store import last_good_state
from rayembed.training.memory import advising_on_memory
from rayembed.training.metrics import MetricsRecorder
from rayembed.training.preemption import PreemptionNotice
from rayembed.training.ray_metrics import RayMetrics
from rayembed.training.saver import CheckpointSaver
from rayembed.training.stage_run import StageRun
from rayembed.training.step import StepOutput
from rayembed.training.steps import Step, step_of
from rayembed.training.summary import step_metrics, summed
from rayembed.training.timing import StepTimer, peak_memory
from rayembed.training.trackers import start_trackers
from rayembed.training.utilization import Utilization

logger = logging.getLogger(__name__)


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then linear decay that would reach zero one step after the last."""
    if step < stage.warmup_steps:
        return (step + 1) / (stage.warmup_steps + 1)
    return (stage.steps - step) / (stage.steps - stage.warmup_steps)


def train_stage(run: StageRun) -> None:
    """Train one stage from its start or from the last checkpoint; called by all ranks inside Ray Train.

    Returns before the last step, after a checkpoint, when a worker is about to be taken away.
    """
    logs.configure()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    _set_threads(run.config.training.threads_per_worker, context.get_local_world_size())
    device = ray.train.torch.get_device()
    stage = run.stage
    resumed = last_good_state(run)
    first_step = resumed.next_step if resumed else 0
    batches = stream_batches(run.stream, start=first_step, stop=stage.steps, rank=rank, world_size=world_size)
    dtype = resolve_precision(run.config.training.precision, device)
    step = step_of(run, device, dtype)
    engine = build_engine(run, resumed, dtype, -(-stage.batch_size // world_size))
    if resumed:
        if rank == 0:
            logger.info(
                "stage %s continues at step %d of %d, %d worker%s",
                stage.name, first_step, stage.steps, world_size, "s" if world_size > 1 else "",
            )  # fmt: skip
        first_batch = next(batches, None)
        if first_batch is None:
            return
        restore_moments(engine, resumed, step, first_batch)
        batches = itertools.chain([first_batch], batches)
    recorder = _recorder(run, first_step) if rank == 0 else None
    with contextlib.closing(recorder) if recorder else contextlib.nullcontext():
        _run_steps(run, step, engine, batches, recorder, rank=rank, world_size=world_size, device=device)


def _run_steps(
    run: StageRun,
    step: Step,
    engine: Any,
    batches: Iterator[TrainingBatch],
    recorder: MetricsRecorder | None,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> None:
    stage, training = run.stage, run.config.training
    timer = StepTimer(device)
    utilization = Utilization(engine.module, device) if recorder else None
    notice = PreemptionNotice()
    saver = CheckpointSaver(run, rank)
    began = started = waiting = time.perf_counter()
    for batch in batches:
        timer.add("data", time.perf_counter() - waiting)
        notice.ask()
        # Dropout depends on step and rank alone, so that a resumed run draws what an unbroken one would.
        torch.manual_seed((run.config.seed * 1_000_003 + run.steps_before + batch.step) * world_size + rank)
        factor = learning_rate_factor(batch.step, stage)
        deepspeed_engine.set_learning_rate(engine, factor)
        try:
            with advising_on_memory(f"stage {stage.name}: step {batch.step}", training, batch):
                output, gradient_norm = _take(step, engine, batch, timer)
        except BadBatch as error:
            message = _report_bad_batch(error, run, batch.step, rank)
            if training.on_bad_batch == "stop":
                # A worker that raised would be started again; one that returns leaves word for the driver.
                if rank == 0:
                    atomic_write(run.run_folder / STOPPED_FILE, message)
                return
        else:
            if (batch.step + 1) % training.log_every == 0:
                sums = summed(output, batch.packed.num_tokens)
                if recorder and utilization:
                    seconds = time.perf_counter() - started
                    metrics = step_metrics(
                        stage,
                        batch.step,
                        output,
                        sums,
                        learning_rate=stage.learning_rate * factor,
                        gradient_norm=float(gradient_norm),
                        phases=timer.seconds(),
                        seconds=seconds,
                        memory=peak_memory(device),
                        utilization=utilization.of(batch.packed, seconds),
                        padding=batch.packed.lengths.padding / batch.packed.input_ids_T.numel(),
                    )
                    recorder.record(metrics)
        timer.restart()
        started = time.perf_counter()
        leaving = notice.given()
        if leaving or saver.due(batch.step + 1):
            # Counted in the step after it, as the line of this one is written.
            timer.add("checkpoint", saver.save(engine, batch.step + 1))
        if leaving:
            if rank == 0:
                logger.warning("stage %s: a worker must go; all leave after step %d", stage.name, batch.step)
            break
        waiting = time.perf_counter()
    if recorder:
        seconds = time.perf_counter() - began
        logger.info(
            "stage %s: checkpoints held training up for %.2f s, %.2f %% of its %.0f s",
            stage.name,
            saver.seconds,
            100 * saver.seconds / seconds,
            seconds,
        )


def _take(step: Step, engine: Any, batch: TrainingBatch, timer: StepTimer) -> tuple[StepOutput, torch.Tensor]:
    """Gradient and move of one step; called by all ranks.

    Raises:
        BadBatch: loss or gradient is not finite; weights and moments are as before.
    """
    output = step.backward(engine, batch, timer)
    with timer.phase("optimizer"):
        gradient_norm = deepspeed_engine.take_step(engine)
    check_finite("gradient", gradient_norm)
    return output, gradient_norm


def _report_bad_batch(error: BadBatch, run: StageRun, step: int, rank: int) -> str:
    """Name the batch in the log and in the run folder; returns the sentence."""
    message, record = name_batch(error, run.stage, step, run.stream)
    if rank == 0:
        path = record_batch(run.run_folder, record)
        logger.warning("%s; all of them are in %s", message, path)
    return message


def _recorder(run: StageRun, first_step: int) -> MetricsRecorder:
    return MetricsRecorder(
        run.run_folder,
        run.stage.name,
        first_step=first_step,
        total_steps=run.stage.steps,
        steps_before=run.steps_before,
        trackers=[
            RayMetrics(run.config.name, run.stage.name),
            *start_trackers(run.config.training.trackers, run.run_folder, run.config.model_dump(mode="json")),
        ],
    )


def _set_threads(declared: int | None, local_workers: int) -> None:
    torch.set_num_threads(declared or max((os.cpu_count() or 1) // local_workers, 1))

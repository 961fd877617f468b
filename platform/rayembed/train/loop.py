"""The training loop of one stage, as every Ray Train worker runs it."""

import contextlib
import itertools
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from rayembed import logs
from rayembed.config import RunConfig, StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.data.stream import StreamSpec, stream_batches
from rayembed.errors import ConfigError, TrainingError
from rayembed.model.precision import resolve_precision
from rayembed.train import engine as deepspeed_engine
from rayembed.train.checkpointing import TrainingState, load_training_state, load_weights, save_training_state
from rayembed.train.distributed import all_finite, sum_over_ranks
from rayembed.train.metrics import MetricsRecorder, SourceMetrics, StepMetrics
from rayembed.train.model import build_trainable, load_trainable_weights, trainable_weights
from rayembed.train.step import StepOutput, contrastive_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRun:
    """One stage as the workers get it.

    Attributes:
        config: the whole run's configuration.
        stage_index: position of the stage.
        base: base model folder or hub id.
        stream: where the plan and the sources are.
        previous: checkpoint folder of the stage before, None for the first.
        run_folder: where metrics go.
    """

    config: RunConfig
    stage_index: int
    base: Path | str
    stream: StreamSpec
    previous: Path | None
    run_folder: Path

    @property
    def stage(self) -> StageConfig:
        """Configuration of this stage."""
        return self.config.stages[self.stage_index]

    @property
    def steps_before(self) -> int:
        """Steps of all earlier stages."""
        return sum(stage.steps for stage in self.config.stages[: self.stage_index])


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then linear decay that would reach zero one step after the last."""
    if step < stage.warmup_steps:
        return (step + 1) / (stage.warmup_steps + 1)
    return (stage.steps - step) / (stage.steps - stage.warmup_steps)


def train_stage(run: StageRun) -> None:
    """Train one stage from its start or from the last checkpoint; called by all ranks inside Ray Train."""
    logs.configure()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    _set_threads(run.config.training.threads_per_worker, context.get_local_world_size())
    device = ray.train.torch.get_device()
    stage = run.stage
    resumed = _last_state()
    first_step = resumed.next_step if resumed else 0
    batches = stream_batches(run.stream, start=first_step, stop=stage.steps, rank=rank, world_size=world_size)
    engine = _build_engine(run, resumed, device, -(-stage.batch_size // world_size))
    if resumed:
        logger.info("stage %s continues at step %d of %d", stage.name, first_step, stage.steps)
        first_batch = next(batches, None)
        if first_batch is None:
            return
        _restore_moments(engine, resumed, first_batch.to(device))
        batches = itertools.chain([first_batch], batches)
    recorder = _recorder(run, first_step) if rank == 0 else None
    with contextlib.closing(recorder) if recorder else contextlib.nullcontext():
        _run_steps(run, engine, batches, recorder, rank=rank, world_size=world_size, device=device)


def _run_steps(
    run: StageRun,
    engine: Any,
    batches: Any,
    recorder: MetricsRecorder | None,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> None:
    stage, training = run.stage, run.config.training
    started = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - started
        # Dropout depends on step and rank alone, so that a resumed run draws what an unbroken one would.
        torch.manual_seed((run.config.seed * 1_000_003 + run.steps_before + batch.step) * world_size + rank)
        factor = learning_rate_factor(batch.step, stage)
        deepspeed_engine.set_learning_rate(engine, factor)
        output = contrastive_step(engine, batch.to(device), stage)
        _check_finite("loss", output.loss, stage, batch)
        engine.backward(output.loss)
        engine.step()
        gradient_norm = torch.as_tensor(engine.get_global_grad_norm())
        _check_finite("gradient norm", gradient_norm, stage, batch)
        if (batch.step + 1) % training.log_every == 0:
            sums = _summed(output, batch)
            finished = time.perf_counter()
            if recorder:
                rate = stage.learning_rate * factor
                norm, seconds = float(gradient_norm), finished - started
                recorder.record(_step_metrics(stage, batch.step, sums, rate, norm, seconds, waited))
        if (batch.step + 1) % training.checkpoint_every == 0 or batch.step + 1 == stage.steps:
            _report_checkpoint(engine, stage, batch.step + 1, rank)
        started = time.perf_counter()


def _build_engine(
    run: StageRun, resumed: TrainingState | None, device: torch.device, rows_per_rank: int
) -> Any:
    """Model with the weights of the checkpoint, of the stage before, or fresh, inside a DeepSpeed engine."""
    training = run.config.training
    dtype = resolve_precision(training.precision, device)
    if training.zero_stage == 0 and dtype is torch.bfloat16:
        raise ConfigError(
            "training.zero_stage 0 works in fp32 only; set it to 1, or training.precision to fp32"
        )
    model = build_trainable(run.config, run.base, dtype)
    if resumed:
        load_trainable_weights(model, resumed.weights, "the checkpoint")
    elif run.previous:
        load_trainable_weights(model, load_weights(run.previous), str(run.previous))
    weights = trainable_weights(model)
    model.train()
    engine = deepspeed_engine.create_engine(
        model, run.stage, training, rows_per_rank=rows_per_rank, dtype=dtype
    )
    deepspeed_engine.write_weights(engine, weights)
    return engine


def _restore_moments(engine: Any, state: TrainingState, batch: TrainingBatch) -> None:
    deepspeed_engine.prime_optimizer(engine, engine(batch.packed))
    deepspeed_engine.write_weights(engine, state.weights)
    deepspeed_engine.write_moments(engine, state.moments, state.next_step)


def _last_state() -> TrainingState | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_training_state(Path(folder))


def _report_checkpoint(engine: Any, stage: StageConfig, next_step: int, rank: int) -> None:
    """Save and hand the folder to Ray Train, which keeps the newest ones; called by all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        save_training_state(Path(folder), engine, stage=stage.name, next_step=next_step, rank=rank)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report(
            {"stage": stage.name, "next_step": next_step},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step-{next_step:07d}",
        )


def _check_finite(what: str, value: torch.Tensor, stage: StageConfig, batch: TrainingBatch) -> None:
    """Stop all ranks together when a value is not finite on any of them, naming the batch."""
    if all_finite(value):
        return
    names = [stage.blend[source].source for source in batch.source_Q.tolist()]
    rows = ", ".join(f"{name}:{row}" for name, row in zip(names, batch.rows, strict=True))
    raise TrainingError(
        f"{what} is not finite in stage {stage.name}, step {batch.step}; this worker's rows were {rows}. "
        "Lower the learning rate or remove the rows"
    )


def _summed(output: StepOutput, batch: TrainingBatch) -> torch.Tensor:
    """Loss, right answers and rows by source, and tokens, over all ranks: shape (3 S + 1)."""
    tokens = torch.tensor([batch.packed.num_tokens], dtype=torch.float32, device=output.loss.device)
    parts = [output.loss_by_source_S, output.correct_by_source_S, output.rows_by_source_S, tokens]
    return sum_over_ranks(torch.cat(parts))


def _step_metrics(
    stage: StageConfig,
    step: int,
    sums: torch.Tensor,
    learning_rate: float,
    gradient_norm: float,
    seconds: float,
    data_seconds: float,
) -> StepMetrics:
    *by_source, tokens = sums.tolist()
    count = len(stage.blend)
    losses, correct, rows = by_source[:count], by_source[count : 2 * count], by_source[2 * count :]
    return StepMetrics(
        step=step,
        loss=sum(losses) / sum(rows),
        learning_rate=learning_rate,
        gradient_norm=gradient_norm,
        tokens=int(tokens),
        seconds=seconds,
        data_seconds=data_seconds,
        sources={
            entry.source: SourceMetrics(
                losses[index] / rows[index], correct[index] / rows[index], int(rows[index])
            )
            for index, entry in enumerate(stage.blend)
            if rows[index]
        },
    )


def _recorder(run: StageRun, first_step: int) -> MetricsRecorder:
    return MetricsRecorder(
        run.run_folder,
        run.stage.name,
        first_step=first_step,
        total_steps=run.stage.steps,
        steps_before=run.steps_before,
    )


def _set_threads(declared: int | None, local_workers: int) -> None:
    torch.set_num_threads(declared or max((os.cpu_count() or 1) // local_workers, 1))

"""Metrics of a run: one JSON line a step, trackers, and a progress line in the log.

`StepMetrics` is the one place where the names of a step's metrics stand: its fields are the keys of a line.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rayembed.common.paths import atomic_write, clear_disk_errors, fetch, here, push
from rayembed.common.progress import duration
from rayembed.data.collate import TrainingBatch
from rayembed.training.callbacks import Callback, TrainerState
from rayembed.training.callbacks.checkpoints import checkpoint_due
from rayembed.training.callbacks.trackers import RayMetrics, TensorBoard, Tracker, start_trackers
from rayembed.training.deepspeed import learning_rate
from rayembed.training.distributed import sum_over_ranks
from rayembed.training.resources import Utilization, peak_memory
from rayembed.training.run_folder import METRICS_FILE
from rayembed.training.step import StepOutput

PROGRESS_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a finished step, over all ranks.

    Attributes:
        stage: its name.
        step: counted through all stages.
        loss: mean over the batch.
        learning_rate: of the backbone.
        gradient_norm: before clipping.
        tokens: of all workers.
        tokens_per_second: of all workers.
        seconds: duration of the step on this rank.
        phases: seconds of each of its phases on this rank, the wait for data among them.
        memory: largest memory of this rank so far, in bytes.
        utilization: share of the measured peak that this rank's arithmetic reached, from 0 to 1.
        nominal_utilization: share of the peak that the GPU's maker states; None for other processors.
        padding: share of this rank's tokens that belong to no text.
        uniformity: of the batch's documents; None where a stage makes no vectors.
        sources: for each source in the batch the mean of each measure of `StepOutput`, and `rows`.
    """

    stage: str
    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    phases: dict[str, float]
    memory: int
    utilization: float
    padding: float
    uniformity: float | None
    sources: dict[str, dict[str, float]]
    nominal_utilization: float | None = None

    def scalars(self) -> dict[str, float]:
        """The numbers under the names that TensorBoard and other trackers show."""
        parts = {"stage", "step", "tokens", "phases", "sources"}
        plain = {name: value for name, value in asdict(self).items() if name not in parts}
        found = {f"train/{name}": value for name, value in plain.items() if value is not None}
        found |= {f"phase/{name}": seconds for name, seconds in self.phases.items()}
        for source, measures in self.sources.items():
            found |= {f"source/{source}/{name}": value for name, value in measures.items()}
        return found


class Metrics(Callback):
    """Measures every step, or every so many; numbers leave the device only then."""

    def __init__(self, state: TrainerState):
        super().__init__(state)
        self._recorder: MetricsRecorder | None = None
        if state.rank == 0:
            stage = state.stage
            self._recorder = MetricsRecorder(
                here(stage.run_folder),
                first_step=state.first_step,
                total_steps=stage.settings.steps,
                steps_before=stage.steps_before,
                trackers=[
                    RayMetrics(stage.run_name, stage.name),
                    *start_trackers(stage.training.trackers, here(stage.run_folder), stage.export.recipe),
                ],
            )
            self._utilization = Utilization(state.wrapped.module, state.device)

    def on_step(self, batch: TrainingBatch, output: StepOutput, gradient_norm: float) -> None:
        """Called by all ranks, because a measure is a mean over the whole batch."""
        state, stage = self.state, self.state.stage
        if (batch.step + 1) % stage.training.log_every:
            return
        sums = summed(output, batch.packed.num_tokens)
        if self._recorder is None:
            return
        seconds = state.timer.total()
        utilization, nominal_utilization = self._utilization.of(batch.packed, seconds)
        loss, tokens, sources = means(output, sums, [entry.source for entry in stage.settings.blend])
        self._recorder.record(
            StepMetrics(
                stage=stage.name,
                step=stage.steps_before + batch.step,
                loss=loss,
                learning_rate=learning_rate(state.wrapped),
                gradient_norm=gradient_norm,
                tokens=tokens,
                tokens_per_second=tokens / seconds,
                seconds=seconds,
                phases=state.timer.seconds(),
                memory=peak_memory(state.device),
                utilization=utilization,
                nominal_utilization=nominal_utilization,
                padding=batch.packed.lengths.padding / batch.packed.input_ids_T.numel(),
                uniformity=None if output.uniformity is None else float(output.uniformity),
                sources=sources,
            )
        )

    def after_step(self, next_step: int) -> None:
        """A checkpoint and the lines before it are stored together."""
        if self._recorder is not None and (self.state.leaving or checkpoint_due(self.state.stage, next_step)):
            self._recorder.push()

    def close(self) -> None:
        """Send what trackers still hold."""
        if self._recorder is not None:
            self._recorder.close()


def summed(output: StepOutput, tokens: int) -> torch.Tensor:
    """Sums and counts of every measure by source, and tokens, over all ranks; called by all ranks.

    Two sources and the measures loss and accuracy give nine numbers:
        loss of source 0, loss of 1, accuracy of 0, accuracy of 1, rows of each of these four, tokens
    """
    parts = [*output.sums_S.values(), *output.counts_S.values()]
    return sum_over_ranks(torch.cat([*parts, parts[0].new_tensor([tokens])]))


def means(
    output: StepOutput, sums: torch.Tensor, sources: Sequence[str]
) -> tuple[float, int, dict[str, dict[str, float]]]:
    """Loss, tokens, and the mean of each measure by source, from what `summed` added up."""
    names, width = list(output.sums_S), len(sources)
    *values, tokens = sums.tolist()
    totals = {name: values[index * width :][:width] for index, name in enumerate(names)}
    counts = {name: values[(index + len(names)) * width :][:width] for index, name in enumerate(names)}
    of_source = {}
    for index, source in enumerate(sources):
        if counts["loss"][index]:
            mean = {name: totals[name][index] / counts[name][index] for name in names if counts[name][index]}
            of_source[source] = {**mean, "rows": int(counts["loss"][index])}
    return sum(totals["loss"]) / sum(counts["loss"]), int(tokens), of_source


class MetricsRecorder:
    """Writes the metrics of one stage; made on rank 0 only.

    Lines of steps that will be taken again after a resume are dropped first, so that the file always holds
    one unbroken trace.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        first_step: int,
        total_steps: int,
        steps_before: int,
        trackers: Sequence[Tracker] = (),
    ):
        """Args:
        run_folder: where the file is.
        first_step: of the stage that is taken now.
        total_steps: of the stage.
        steps_before: of the stages before it.
        trackers: get the numbers as well as TensorBoard.
        """
        self._path = fetch(run_folder / METRICS_FILE)
        self._total_steps, self._steps_before = total_steps, steps_before
        self._last_progress = 0.0
        self._first_done: tuple[int, float] | None = None
        _drop_later_lines(self._path, steps_before + first_step)
        self._board = TensorBoard(self._path.parent, steps_before + first_step)
        self._trackers = [self._board, *trackers]

    def record(self, metrics: StepMetrics) -> None:
        """Append one step.

        Raises:
            ResourceError: the disk is full.
        """
        with clear_disk_errors(self._path.parent), self._path.open("a") as stream:
            stream.write(json.dumps(asdict(metrics)) + "\n")
        for tracker in self._trackers:
            tracker.log(metrics.scalars(), metrics.step)
        self._log_progress(metrics)

    def push(self) -> None:
        """Bring what is written so far to the store of the run folder, if it is in one."""
        push(self._path)
        self._board.push()

    def close(self) -> None:
        """Send what trackers still hold."""
        for tracker in self._trackers:
            tracker.close()
        self.push()

    def _log_progress(self, metrics: StepMetrics) -> None:
        done = metrics.step + 1 - self._steps_before
        now = time.monotonic()
        self._first_done = self._first_done or (done, now)
        if now - self._last_progress < PROGRESS_SECONDS and done < self._total_steps:
            return
        self._last_progress = now
        # The first step waits for the first lanes, so the pace is taken from the steps after it.
        first, since = self._first_done
        pace = (now - since) / (done - first) if done > first else metrics.seconds
        logger.info(
            "stage %s: step %d/%d, loss %.4f, %.0f tokens/s, %s left",
            metrics.stage, done, self._total_steps, metrics.loss, metrics.tokens_per_second,
            duration((self._total_steps - done) * pace),
        )  # fmt: skip


def _drop_later_lines(path: Path, first_step: int) -> None:
    """Keep the complete lines of steps before `first_step`."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            logger.warning("dropping a torn last line of %s", path)
    atomic_write(path, "".join(kept))

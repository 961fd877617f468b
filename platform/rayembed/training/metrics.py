"""Metrics of a run: one JSON line a step, TensorBoard events, and a progress line in the log."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rayembed.common.paths import atomic_write, clear_disk_errors
from rayembed.training.run_folder import METRICS_FILE
from rayembed.training.trackers import Tracker

PROGRESS_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a finished step, over all ranks.

    Attributes:
        step: step of the stage.
        loss: mean over the batch.
        learning_rate: of the backbone.
        gradient_norm: before clipping; not a number when the batch was skipped.
        tokens: of all workers.
        seconds: duration of the step on this rank.
        phases: seconds of each of its phases on this rank, the wait for data among them.
        memory: largest memory of this rank so far, in bytes.
        utilization: share of the measured peak that this rank's arithmetic reached, from 0 to 1.
        padding: share of this rank's tokens that belong to no text.
        uniformity: of the batch's documents; None where a stage makes no vectors.
        sources: for each source in the batch the mean of each measure, and `rows`.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    phases: dict[str, float]
    memory: int
    utilization: float
    padding: float
    uniformity: float | None
    sources: dict[str, dict[str, float]]


class MetricsRecorder:
    """Writes one stage's metrics; made on rank 0 only.

    Lines of steps that will be taken again after a resume are dropped first, so that the file always holds
    one unbroken trace.
    """

    def __init__(
        self,
        run_folder: Path,
        stage: str,
        *,
        first_step: int,
        total_steps: int,
        steps_before: int,
        trackers: Sequence[Tracker] = (),
    ):
        self._path = run_folder / METRICS_FILE
        self._stage = stage
        self._total_steps = total_steps
        self._steps_before = steps_before
        _drop_later_lines(self._path, steps_before + first_step)
        self._tensorboard = SummaryWriter(
            str(run_folder / "tensorboard"), purge_step=steps_before + first_step
        )
        self._trackers = trackers
        self._last_progress = 0.0
        self._first_done: tuple[int, float] | None = None

    def record(self, metrics: StepMetrics) -> None:
        """Append one step.

        Raises:
            ResourceError: the disk is full.
        """
        step = self._steps_before + metrics.step
        line = {
            "stage": self._stage,
            "step": step,
            "loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "tokens": metrics.tokens,
            "tokens_per_second": metrics.tokens / metrics.seconds,
            "seconds": metrics.seconds,
            "phases": metrics.phases,
            "memory": metrics.memory,
            "utilization": metrics.utilization,
            "padding": metrics.padding,
            "uniformity": metrics.uniformity,
            "sources": metrics.sources,
        }
        with clear_disk_errors(self._path.parent), self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        values = scalars(line)
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(values, step)
        self._log_progress(metrics)

    def _log_progress(self, metrics: StepMetrics) -> None:
        done = metrics.step + 1
        now = time.monotonic()
        self._first_done = self._first_done or (done, now)
        if now - self._last_progress < PROGRESS_SECONDS and done < self._total_steps:
            return
        self._last_progress = now
        # The first step waits for the data stream to start, so the pace is taken from the steps after it.
        first, since = self._first_done
        pace = (now - since) / (done - first) if done > first else metrics.seconds
        remaining = round((self._total_steps - done) * pace)
        logger.info(
            "stage %s: step %d/%d, loss %.4f, %.0f tokens/s, %d:%02d left",
            self._stage,
            done,
            self._total_steps,
            metrics.loss,
            metrics.tokens / metrics.seconds,
            remaining // 60,
            remaining % 60,
        )

    def close(self) -> None:
        """Write out what TensorBoard and other trackers still hold."""
        self._tensorboard.close()
        for tracker in self._trackers:
            tracker.close()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics under the names that TensorBoard and other trackers show."""
    plain = (
        "loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds", "memory", "utilization",
        "padding", "uniformity",
    )  # fmt: skip
    found = {f"train/{name}": line[name] for name in plain if line[name] is not None}
    found |= {f"phase/{name}": seconds for name, seconds in line["phases"].items()}
    for source, measures in line["sources"].items():
        found |= {f"source/{source}/{name}": value for name, value in measures.items()}
    return found


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

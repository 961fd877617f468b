"""Metrics of a run: one JSON line a step, TensorBoard events, and a progress line in the log."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from rayembed.paths import atomic_write

METRICS_FILE = "metrics.jsonl"
PROGRESS_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceMetrics:
    """Mean loss and share of rows whose positive came first, of one source in one step."""

    loss: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a finished step, over all ranks; seconds are wall time since the last step."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    data_seconds: float
    sources: dict[str, SourceMetrics]


class MetricsRecorder:
    """Writes one stage's metrics; made on rank 0 only.

    Lines of steps that will be taken again after a resume are dropped first, so that the file always holds
    one unbroken trace.
    """

    def __init__(self, run_folder: Path, stage: str, *, first_step: int, total_steps: int, steps_before: int):
        self._path = run_folder / METRICS_FILE
        self._stage = stage
        self._total_steps = total_steps
        self._steps_before = steps_before
        _drop_later_lines(self._path, steps_before + first_step)
        self._tensorboard = SummaryWriter(
            str(run_folder / "tensorboard"), purge_step=steps_before + first_step
        )
        self._last_progress = 0.0
        self._first_done: tuple[int, float] | None = None

    def record(self, metrics: StepMetrics) -> None:
        """Append one step."""
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
            "data_seconds": metrics.data_seconds,
            "sources": {name: vars(source) for name, source in metrics.sources.items()},
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
            self._tensorboard.add_scalar(f"train/{name}", line[name], step)
        for name, source in metrics.sources.items():
            self._tensorboard.add_scalar(f"source/{name}/loss", source.loss, step)
            self._tensorboard.add_scalar(f"source/{name}/accuracy", source.accuracy, step)
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
        """Flush the TensorBoard events."""
        self._tensorboard.close()


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

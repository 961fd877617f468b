"""Batches whose loss or gradient is not finite: named and written down; they end a stage or are left out."""

import json
import logging
from pathlib import Path

import numpy as np

from rayembed.common.paths import atomic_write, fetch, push
from rayembed.config.stage import StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.training.callbacks import Callback
from rayembed.training.step import BadBatch

BAD_BATCHES_FILE = "bad_batches.jsonl"
STOPPED_FILE = "stopped.txt"  # in the run folder: why a bad batch ended the stage
_NAMED_ROWS = 8

logger = logging.getLogger(__name__)


class BadBatches(Callback):
    """Names a bad batch in the log and the run folder, and ends the stage where the recipe says so."""

    def on_bad_batch(self, batch: TrainingBatch, error: BadBatch) -> None:
        """All ranks decide alike; the first one writes."""
        stage = self.state.stage
        stops = stage.training.on_bad_batch == "stop"
        if self.state.rank == 0:
            message, record = name_batch(error, stage.settings, batch.step, stage.stream)
            path = record_batch(stage.run_folder, record)
            logger.warning("%s; all of them are in %s", message, path)
            if stops:
                # A worker that raised would be started again; one that returns leaves word for the driver.
                atomic_write(stage.run_folder / STOPPED_FILE, message)
        self.state.stopped = stops


def name_batch(error: BadBatch, stage: StageConfig, step: int, spec: StreamSpec) -> tuple[str, dict]:
    """One sentence about a bad batch with its first rows, and a record with all rows of the global batch."""
    sources = [PreparedRows.open(path) for path in spec.sources]
    rows = [
        {"source": stage.blend[source].source, "row": row}
        | sources[source].take(np.array([row]), ["query_id"])[0]
        for source, row in PlanReader(spec.plan).read(step).pairs()
    ]
    shown = ", ".join(f"{row['source']} {row['query_id']}" for row in rows[:_NAMED_ROWS])
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    sentence = f"{error} in stage {stage.name}, step {step}, of the rows {shown}{more}"
    return sentence, {"stage": stage.name, "step": step, "what": str(error), "rows": rows}


def record_batch(run_folder: Path, record: dict) -> Path:
    """Append the record to the run's file of bad batches; called by rank 0."""
    path = fetch(run_folder / BAD_BATCHES_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    push(path)
    return path

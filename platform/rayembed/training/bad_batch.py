"""Batches whose loss or gradient is not finite: found by all ranks together, named, and written down."""

import json
import logging
from pathlib import Path

import torch

from rayembed.config import StageConfig
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.training.distributed import all_finite

BAD_BATCHES_FILE = "bad_batches.jsonl"
STOPPED_FILE = "stopped.txt"  # in the run folder: why a bad batch ended the stage
_NAMED_ROWS = 8

logger = logging.getLogger(__name__)


class BadBatch(Exception):
    """A value of the step is not finite on some rank; raised on all ranks, before anything was changed."""


def check_finite(what: str, value: torch.Tensor) -> None:
    """Called by all ranks.

    Raises:
        BadBatch: `value` is not finite on some rank.
    """
    if not all_finite(value):
        raise BadBatch(f"the {what} is not finite")


def name_batch(error: BadBatch, stage: StageConfig, step: int, spec: StreamSpec) -> tuple[str, dict]:
    """One sentence about a bad batch with its first rows, and a record with all rows of the global batch."""
    sources = [PreparedRows.open(path) for path in spec.sources]
    rows = [
        {
            "source": stage.blend[source].source,
            "row": row,
            "query_id": sources[source].row(row)["query_id"][0].as_py(),
        }
        for source, row in PlanReader(spec.plan).read(step).pairs()
    ]
    shown = ", ".join(f"{row['source']} {row['query_id']}" for row in rows[:_NAMED_ROWS])
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    sentence = f"{error} in stage {stage.name}, step {step}, of the rows {shown}{more}"
    return sentence, {"stage": stage.name, "step": step, "what": str(error), "rows": rows}


def record_batch(run_folder: Path, record: dict) -> Path:
    """Append the record to the run's file of bad batches; called by rank 0."""
    path = run_folder / BAD_BATCHES_FILE
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    return path

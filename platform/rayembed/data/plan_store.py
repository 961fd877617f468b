"""A plan on disk: Parquet files of about a million rows each, and what the plan was made from."""

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.paths import atomic_directory, atomic_write, fetch
from rayembed.common.progress import Progress
from rayembed.data.plan import PlannedBatch, fingerprint

logger = logging.getLogger(__name__)

PLAN_SCHEMA = pa.schema(
    [("step", pa.int64()), ("source", pa.list_(pa.int16())), ("row", pa.list_(pa.int64()))]
)
ROWS_PER_FILE = 1 << 20
_NOTE_FILE = "plan.json"


def write_plan(folder: Path, batches: Iterable[PlannedBatch], description: dict[str, Any]) -> int:
    """Store a plan with the description of what it was made from; returns the number of steps.

    Raises whatever making the batches raises; then nothing is left in `folder`.
    """
    remaining = iter(batches)
    first = next(remaining)
    batch_size = len(first.rows)
    steps_per_file = max(ROWS_PER_FILE // batch_size, 1)
    progress = Progress(logger, "plan", unit="steps")
    with atomic_directory(folder) as temporary:
        stream = chain([first], remaining)
        while chunk := list(islice(stream, steps_per_file)):
            _write_file(_file(temporary, progress.done // steps_per_file), chunk)
            progress.add(len(chunk))
        note = {
            "fingerprint": fingerprint(description),
            "steps": progress.done,
            "batch_size": batch_size,
            "steps_per_file": steps_per_file,
            "description": description,
        }
        atomic_write(temporary / _NOTE_FILE, json.dumps(note, indent=2) + "\n")
    return progress.done


def _file(folder: Path, number: int) -> Path:
    return folder / f"steps-{number:06d}.parquet"


def _write_file(path: Path, chunk: Sequence[PlannedBatch]) -> None:
    starts = np.concatenate([[0], np.cumsum([len(batch.rows) for batch in chunk])]).astype(np.int32)
    columns = [
        pa.array([batch.step for batch in chunk], pa.int64()),
        pa.ListArray.from_arrays(starts, np.concatenate([batch.sources for batch in chunk])),
        pa.ListArray.from_arrays(starts, np.concatenate([batch.rows for batch in chunk])),
    ]
    table = pa.table(columns, schema=PLAN_SCHEMA)
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def stored_description(folder: Path) -> dict[str, Any] | None:
    """What the plan in `folder` was made from, None where there is no plan."""
    path = fetch(folder / _NOTE_FILE)
    return json.loads(path.read_text())["description"] if path.is_file() else None


class PlanReader:
    """Random access to the steps of a stored plan; keeps one file in memory."""

    def __init__(self, folder: Path):
        self._folder = folder
        note = json.loads(fetch(folder / _NOTE_FILE).read_text())
        self._batch_size: int = note["batch_size"]
        self._steps_per_file: int = note["steps_per_file"]
        self.steps: int = note["steps"]
        self._number = -1
        self._sources = self._rows = np.empty((0, self._batch_size), np.int64)

    def read(self, step: int) -> PlannedBatch:
        """Rows of one step."""
        number, position = divmod(step, self._steps_per_file)
        if number != self._number:
            table = pq.read_table(fetch(_file(self._folder, number)), columns=["source", "row"])
            self._sources, self._rows = (
                pa.concat_arrays(table[name].chunks).flatten().to_numpy().reshape(-1, self._batch_size)
                for name in ("source", "row")
            )
            self._number = number
        return PlannedBatch(step, self._sources[position], self._rows[position])

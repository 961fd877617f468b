"""A plan on disk: Parquet files of about a million rows each, and what the plan was made from."""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.paths import atomic_directory, atomic_write
from rayembed.data.plan import PlannedBatch, fingerprint

logger = logging.getLogger(__name__)

PLAN_SCHEMA = pa.schema(
    [("step", pa.int64()), ("source", pa.list_(pa.int16())), ("row", pa.list_(pa.int64()))]
)
ROWS_PER_FILE = 1 << 20
_NOTE_FILE = "plan.json"
_PROGRESS_SECONDS = 10.0


def write_plan(folder: Path, batches: Iterable[PlannedBatch], description: dict[str, Any]) -> int:
    """Store a plan beside the description of what it was made from; returns the number of steps.

    Raises whatever making the batches raises; then nothing is left in `folder`.
    """
    remaining = iter(batches)
    first = next(remaining)
    batch_size = len(first.rows)
    steps_per_file = max(ROWS_PER_FILE // batch_size, 1)
    steps, last_shown = 0, time.monotonic()
    with atomic_directory(folder) as temporary:
        stream = chain([first], remaining)
        while chunk := list(islice(stream, steps_per_file)):
            _write_file(_file(temporary, steps // steps_per_file), chunk)
            steps += len(chunk)
            if time.monotonic() - last_shown > _PROGRESS_SECONDS:
                last_shown = time.monotonic()
                logger.info("plan: %d steps laid down", steps)
        note = {
            "fingerprint": fingerprint(description),
            "steps": steps,
            "batch_size": batch_size,
            "steps_per_file": steps_per_file,
            "description": description,
        }
        atomic_write(temporary / _NOTE_FILE, json.dumps(note, indent=2) + "\n")
    return steps


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
    path = folder / _NOTE_FILE
    return json.loads(path.read_text())["description"] if path.is_file() else None


def differences(before: Any, now: Any, *where: str) -> Iterator[str]:
    """What differs between two descriptions, one sentence each."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from differences(before.get(key), now.get(key), *where, key)
    elif before != now:
        yield _sentence(before, now, where)


def _sentence(before: Any, now: Any, where: tuple[str, ...]) -> str:
    name = " ".join(where)
    if now is None:
        return f"{name} is gone"
    if before is None:
        return f"{name} is new"
    is_digest = all(isinstance(value, str) and len(value) == 64 for value in (before, now))
    return f"{name} changed" if is_digest else f"{name} was {before!r} and is {now!r}"


class PlanReader:
    """Random access to the steps of a stored plan; keeps one file in memory."""

    def __init__(self, folder: Path):
        self._folder = folder
        note = json.loads((folder / _NOTE_FILE).read_text())
        self._batch_size: int = note["batch_size"]
        self._steps_per_file: int = note["steps_per_file"]
        self.steps: int = note["steps"]
        self._number = -1
        self._sources = self._rows = np.empty((0, self._batch_size), np.int64)

    def read(self, step: int) -> PlannedBatch:
        """Rows of one step."""
        number, position = divmod(step, self._steps_per_file)
        if number != self._number:
            table = pq.read_table(_file(self._folder, number), columns=["source", "row"])
            self._sources, self._rows = (
                pa.concat_arrays(table[name].chunks).flatten().to_numpy().reshape(-1, self._batch_size)
                for name in ("source", "row")
            )
            self._number = number
        return PlannedBatch(step, self._sources[position], self._rows[position])

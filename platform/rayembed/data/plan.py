"""The batch plan: which rows every step trains on.

The plan is a pure function of the prepared sources, their weights, the batch size and the seed. It knows
nothing of workers: a step names the rows of the global batch and each worker takes its share of them, so all
workers have the same number of steps by construction and another number of workers continues the same
batches.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.errors import DataError
from rayembed.paths import atomic_directory, atomic_write

logger = logging.getLogger(__name__)

PLAN_SCHEMA = pa.schema(
    [("step", pa.int64()), ("source", pa.list_(pa.int16())), ("row", pa.list_(pa.int64()))]
)
STEPS_PER_FILE = 4096
_FINGERPRINT_FILE = "plan.json"


@dataclass(frozen=True)
class PlannedSource:
    """What the plan needs to know of a source: its share and which document answers each row."""

    name: str
    weight: float
    in_batch_negatives: bool
    target_ids: np.ndarray  # uint64 hash of each row's first positive


@dataclass(frozen=True)
class PlannedBatch:
    """Rows of one step as (source position in the blend, row position in the source)."""

    step: int
    rows: list[tuple[int, int]]


class _RowSequence:
    """Endless walk over a source's rows: a new seeded permutation each epoch, postponed rows first."""

    def __init__(self, num_rows: int, seed: tuple[int, ...]):
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = 0
        self._rows: deque[int] = deque()
        self.postponed: deque[int] = deque()

    def next(self) -> int:
        if self.postponed:
            return self.postponed.popleft()
        if not self._rows:
            order = np.random.default_rng([*self._seed, self._epoch]).permutation(self._num_rows)
            self._rows.extend(order.tolist())
            self._epoch += 1
        return self._rows.popleft()


def plan_batches(
    sources: Sequence[PlannedSource],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    batching: Literal["blended", "homogeneous"] = "blended",
) -> Iterator[PlannedBatch]:
    """Lay down `steps` batches of `batch_size` rows.

    Shares follow the weights exactly in the long run: what a source is owed and did not get in one batch is
    carried to the next. Two rows that are answered by the same document are never in one batch where in-batch
    negatives are on; the later one is postponed to the next batch.

    Raises:
        DataError: a source has fewer distinct documents than its largest share of one batch.
    """
    sequences = [_RowSequence(len(source.target_ids), (seed, index)) for index, source in enumerate(sources)]
    weights = np.array([source.weight for source in sources], dtype=float)
    owed = np.zeros(len(sources))
    shares = weights / weights.sum()
    for step in range(steps):
        owed += shares * batch_size
        counts = _row_counts(owed, batch_size, batching)
        owed -= counts
        seen: set[int] = set()
        rows: list[tuple[int, int]] = []
        for index, count in enumerate(counts):
            rows.extend((index, row) for row in _take(sources[index], sequences[index], count, seen))
        yield PlannedBatch(step, rows)


def _row_counts(owed: np.ndarray, batch_size: int, batching: str) -> list[int]:
    """Rows that each source gives to this batch."""
    counts = np.zeros(len(owed), dtype=int)
    if batching == "homogeneous":
        counts[int(np.argmax(owed))] = batch_size
        return counts.tolist()
    counts = np.maximum(np.floor(owed).astype(int), 0)
    remainder = owed - counts
    for index in np.argsort(-remainder, kind="stable")[: max(batch_size - counts.sum(), 0)]:
        counts[index] += 1
    while counts.sum() > batch_size:
        counts[int(np.argmax(counts))] -= 1
    return counts.tolist()


def _take(source: PlannedSource, sequence: _RowSequence, count: int, seen: set[int]) -> list[int]:
    taken: list[int] = []
    clashing: list[int] = []
    while len(taken) < count:
        if len(clashing) > max(len(source.target_ids), 10 * count):
            raise DataError(
                f"source {source.name} has too few distinct documents for {count} rows in one batch with "
                "in-batch negatives; lower batch_size or its weight, or turn in_batch_negatives off"
            )
        row = sequence.next()
        target = int(source.target_ids[row])
        if source.in_batch_negatives and target in seen:
            clashing.append(row)
            continue
        seen.add(target)
        taken.append(row)
    sequence.postponed.extend(clashing)
    return taken


def fingerprint(description: dict[str, object]) -> str:
    """SHA-256 of everything that a plan depends on."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def write_plan(folder: Path, batches: Iterator[PlannedBatch], plan_fingerprint: str) -> int:
    """Store a plan as Parquet files of `STEPS_PER_FILE` steps; returns the number of steps."""
    steps = 0
    with atomic_directory(folder) as temporary:
        chunk: list[PlannedBatch] = []
        for batch in batches:
            chunk.append(batch)
            if len(chunk) == STEPS_PER_FILE:
                _write_chunk(temporary, chunk)
                steps, chunk = steps + len(chunk), []
        if chunk:
            _write_chunk(temporary, chunk)
            steps += len(chunk)
        atomic_write(
            temporary / _FINGERPRINT_FILE,
            json.dumps({"fingerprint": plan_fingerprint, "steps": steps}) + "\n",
        )
    return steps


def _write_chunk(folder: Path, chunk: list[PlannedBatch]) -> None:
    columns = {
        "step": [batch.step for batch in chunk],
        "source": [[source for source, _ in batch.rows] for batch in chunk],
        "row": [[row for _, row in batch.rows] for batch in chunk],
    }
    name = f"steps-{chunk[0].step // STEPS_PER_FILE:06d}.parquet"
    pq.write_table(pa.table(columns, schema=PLAN_SCHEMA), folder / name, compression="zstd")


def stored_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the plan in `folder`, None where there is none."""
    path = folder / _FINGERPRINT_FILE
    return json.loads(path.read_text())["fingerprint"] if path.is_file() else None


class PlanReader:
    """Random access to the steps of a stored plan; keeps one file in memory."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file_index = -1
        self._table: pa.Table | None = None

    def read(self, step: int) -> PlannedBatch:
        """Rows of one step."""
        file_index, position = divmod(step, STEPS_PER_FILE)
        if self._table is None or file_index != self._file_index:
            self._table = pq.read_table(self._folder / f"steps-{file_index:06d}.parquet")
            self._file_index = file_index
        sources = self._table["source"][position].as_py()
        rows = self._table["row"][position].as_py()
        return PlannedBatch(step, list(zip(sources, rows, strict=True)))

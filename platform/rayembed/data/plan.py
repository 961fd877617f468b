"""The batch plan: which rows every step trains on.

The plan is a pure function of the prepared sources, the blend, the batch size and the seed. It knows nothing
of workers: a step names the rows of the global batch and each worker takes its share of them, so all workers
have the same number of steps by construction and another number of workers continues the same batches.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayembed.common.errors import DataError
from rayembed.data.clashes import KeyReader, SharedKeys, find_shared_keys
from rayembed.data.row_sequence import RowSequence
from rayembed.data.shares import Batching, rows_of_sources, shares, unit_size

_WAITING_LOOKED_AT = 4  # times the rows wanted; keeps a step short where many rows wait


def fingerprint(description: Mapping[str, object]) -> str:
    """SHA-256 of everything that a plan, or any other derived file, depends on."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedSource:
    """What the plan needs to know of a source.

    Attributes:
        name: for messages.
        num_rows: rows of the source.
        in_batch_negatives: whether its rows take other rows' documents for negatives.
        weight: share of the rows relative to the other sources; None: by size.
        cap: most different rows that are used.
        epochs: most passes over the rows; None: as many as the steps need.
        keys: reads what its rows may not share with others of a batch.
    """

    name: str
    num_rows: int
    in_batch_negatives: bool
    weight: float | None = 1.0
    cap: int | None = None
    epochs: float | None = None
    keys: KeyReader = lambda: iter(())


@dataclass(frozen=True)
class PlannedBatch:
    """Rows of one step.

    Attributes:
        step: step of the stage.
        sources: position of each row's source in the blend [rows].
        rows: position of each row in its source [rows].
    """

    step: int
    sources: np.ndarray
    rows: np.ndarray

    def pairs(self) -> list[tuple[int, int]]:
        """(source, row) of every row."""
        return list(zip(self.sources.tolist(), self.rows.tolist(), strict=True))


def plan_batches(
    sources: Sequence[PlannedSource],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    batching: Batching = "blended",
    sub_batch_size: int | None = None,
    size_temperature: float = 1.0,
) -> Iterator[PlannedBatch]:
    """Lay down `steps` batches of `batch_size` rows.

    Shares follow the weights in the long run: what a source is owed and did not get in one batch is carried
    to the next. Rows that clash (see `clashes`) are never in one batch where one of them has in-batch
    negatives; the later one waits for the next batch. A source whose epochs are over leaves the blend.

    Raises:
        DataError: a source has too few rows without a clash for its share of a batch, or the blend's epochs
            are over before the last step.
    """
    unit = unit_size(batching, batch_size, sub_batch_size)
    seen_by = _clash_checks(sources)
    sequences = [
        RowSequence(source.num_rows, (seed, index), cap=source.cap, epochs=source.epochs)
        for index, source in enumerate(sources)
    ]
    parts = shares(
        [source.weight for source in sources],
        [sequence.num_rows for sequence in sequences],
        size_temperature,
    )
    owed = np.zeros(len(sources))
    available = np.array([sequence.remaining for sequence in sequences])
    for step in range(steps):
        while True:
            present = parts * (available >= unit)
            due = owed + present / max(present.sum(), 1e-12) * batch_size
            counts = rows_of_sources(due, available, batch_size, unit)
            if counts.sum() < batch_size:
                raise _out_of_rows(sources, step, steps, batch_size)
            taken = _take_all(sources, sequences, counts, seen_by)
            short = [index for index, rows in taken.items() if len(rows) < counts[index]]
            if not short:
                break
            for index, rows in taken.items():
                sequences[index].put_back(rows.tolist())
            for index in short:
                if sources[index].epochs is None:
                    raise _too_few(sources[index], int(counts[index]))
                available[index] = 0  # the few rows it has left clash with each other
        owed = due - counts
        for index in taken:
            if np.isfinite(available[index]):
                available[index] = sequences[index].remaining
        owed[available < unit] = 0
        yield PlannedBatch(
            step,
            np.repeat(np.arange(len(sources), dtype=np.int16), counts),
            np.concatenate(list(taken.values())).astype(np.int64),
        )


@dataclass(frozen=True)
class _ClashCheck:
    """What is looked at before a source's row joins a batch."""

    shared: SharedKeys
    has_any: np.ndarray


@dataclass
class _Seen:
    """Keys of the rows that a batch has so far."""

    all_rows: set[int]
    in_batch_rows: set[int]

    def admit(self, keys: list[int], in_batch_negatives: bool) -> bool:
        """Note the keys of a row and return True, or return False where it clashes."""
        against = self.all_rows if in_batch_negatives else self.in_batch_rows
        if not against.isdisjoint(keys):
            return False
        self.all_rows.update(keys)
        if in_batch_negatives:
            self.in_batch_rows.update(keys)
        return True


def _clash_checks(sources: Sequence[PlannedSource]) -> list[_ClashCheck] | None:
    """None where no source has in-batch negatives, so that nothing can clash."""
    if not any(source.in_batch_negatives for source in sources):
        return None
    found = find_shared_keys([source.keys for source in sources], [source.num_rows for source in sources])
    return [_ClashCheck(shared, shared.has_any()) for shared in found]


def _take_all(
    sources: Sequence[PlannedSource],
    sequences: Sequence[RowSequence],
    counts: np.ndarray,
    checks: list[_ClashCheck] | None,
) -> dict[int, np.ndarray]:
    """Rows of each source that has a count; fewer than that where no others fit."""
    seen = _Seen(set(), set())
    taken = {}
    for index, count in enumerate(counts.tolist()):
        if count:
            in_batch = sources[index].in_batch_negatives
            check = checks[index] if checks else None
            taken[index] = _take(sequences[index], count, check, seen, in_batch)
    return taken


def _take(
    sequence: RowSequence, count: int, check: _ClashCheck | None, seen: _Seen, in_batch_negatives: bool
) -> np.ndarray:
    taken = [np.empty(0, dtype=np.int64)]
    passed_over: list[int] = []  # rows that have waited keep their place before those that begin to
    clashing: list[int] = []
    missing, waiting_budget, fresh_budget = count, _WAITING_LOOKED_AT * count, 2 * sequence.num_rows
    while missing and fresh_budget > 0:
        has_waited = bool(sequence.waiting) and waiting_budget > 0
        if has_waited:
            rows = sequence.take_waiting(min(missing, waiting_budget))
            waiting_budget -= len(rows)
        else:
            rows = sequence.take_fresh(missing)
            fresh_budget -= len(rows)
            if not len(rows) and not sequence.waiting:
                break
            if not len(rows):
                waiting_budget = len(sequence.waiting)
        fitting = np.ones(len(rows), dtype=bool)
        if in_batch_negatives and len(taken) > 1 and not has_waited:
            # The first rows of an epoch may be the last ones of the epoch before.
            fitting = ~np.isin(rows, np.concatenate(taken))
            sequence.defer(rows[~fitting])
            rows, fitting = rows[fitting], fitting[fitting]
        if check is not None:
            _keep_fitting(fitting, rows, check, seen, in_batch_negatives)
        taken.append(rows[fitting])
        (passed_over if has_waited else clashing).extend(rows[~fitting].tolist())
        missing -= len(taken[-1])
    sequence.put_back(passed_over)
    sequence.waiting.extend(clashing)
    return np.concatenate(taken)


def _keep_fitting(
    fitting: np.ndarray, rows: np.ndarray, check: _ClashCheck, seen: _Seen, in_batch_negatives: bool
) -> None:
    """Clear the flag of every row that clashes with one before it."""
    for position in np.flatnonzero(fitting & check.has_any[rows]).tolist():
        fitting[position] = seen.admit(check.shared.of(rows[position]), in_batch_negatives)


def _too_few(source: PlannedSource, count: int) -> DataError:
    return DataError(
        f"source {source.name} has too few distinct documents and clusters for {count} rows in one batch "
        "with in-batch negatives; lower batch_size or its weight, or turn in_batch_negatives off"
    )


def _out_of_rows(sources: Sequence[PlannedSource], step: int, steps: int, batch_size: int) -> DataError:
    limits = ", ".join(f"{source.name} {source.epochs:g}" for source in sources if source.epochs is not None)
    return DataError(
        f"the blend has rows for {step} of {steps} steps of {batch_size} rows (epochs: {limits}); "
        f"lower steps to {step}, raise epochs, or leave epochs out for sources that may repeat"
    )

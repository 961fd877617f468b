"""The batch plan: which rows every step trains on.

The plan is a pure function of the prepared sources, the blend, the batch size and the seed. It knows nothing
of workers: a step names the rows of the global batch and each worker takes its share of them, so all workers
have the same number of steps by construction and another number of workers continues the same batches.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayembed.common.errors import DataError
from rayembed.data.clashes import KeyReader, SharedKeys, find_shared_keys

_WAITING_LOOKED_AT = 4  # times the rows wanted; keeps a step short where many rows wait


def fingerprint(description: Mapping[str, object]) -> str:
    """SHA-256 of everything that a plan, or any other derived file, depends on."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


class RowSequence:
    """Walk over a source's rows: a new seeded permutation each epoch, and rows that have to wait.

    A row waits when a batch cannot take it, and is offered again to the next one.
    """

    def __init__(self, num_rows: int, seed: tuple[int, ...], *, cap: int | None, epochs: float | None):
        self._seed = seed
        self._chosen = self._choose(num_rows, cap)
        self._epoch = 0
        self._order = self._chosen[:0]
        self._unread: float = np.inf if epochs is None else round(epochs * self.num_rows)
        self.waiting: deque[int] = deque()

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._chosen)

    @property
    def remaining(self) -> float:
        """Rows still to come, infinite without a limit on the epochs."""
        return self._unread + len(self.waiting)

    def take_waiting(self, count: int) -> np.ndarray:
        """Up to `count` of the rows that have waited longest."""
        return np.array(
            [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))], dtype=np.int64
        )

    def take_fresh(self, count: int) -> np.ndarray:
        """Up to `count` rows of the present epoch; none when all epochs are over."""
        if not len(self._order) and self._unread:
            self._order = self._next_epoch()
        taken = self._order[: int(min(count, self._unread))]
        self._order = self._order[len(taken) :]
        self._unread -= len(taken)
        return taken

    def defer(self, rows: np.ndarray) -> None:
        """Move rows that were taken to the end of the present epoch."""
        if len(rows):
            self._order = np.concatenate([self._order, rows])
            self._unread += len(rows)

    def put_back(self, rows: Iterable[int]) -> None:
        """Return rows that were taken, so that they come next."""
        self.waiting.extendleft(reversed(list(rows)))

    def _choose(self, num_rows: int, cap: int | None) -> np.ndarray:
        rows = np.arange(num_rows, dtype=np.uint32 if num_rows < 1 << 32 else np.uint64)
        if cap is None or cap >= num_rows:
            return rows
        chosen = np.random.default_rng([*self._seed, _CAP]).choice(num_rows, size=cap, replace=False)
        return np.sort(chosen).astype(rows.dtype)

    def _next_epoch(self) -> np.ndarray:
        order = np.random.default_rng([*self._seed, self._epoch]).permutation(self._chosen)
        self._epoch += 1
        if len(self.waiting) < self.num_rows:
            return order
        # A whole epoch is waiting already, as with few large clusters; its rows are not queued once more.
        return order[~np.isin(order, np.fromiter(self.waiting, dtype=order.dtype))]


_CAP = 0xCA9
"""Sets the generator that chooses the rows under a cap apart from those of the epochs."""


Batching = Literal["blended", "homogeneous", "interleaved"]


def shares(weights: Sequence[float | None], num_rows: Sequence[int], size_temperature: float) -> np.ndarray:
    """Share of each source among the rows of a blend: float [sources], adding up to one.

    A source has its declared weight; without one it has rows ** (1 / size_temperature), so that 1 follows
    the sizes and a high temperature treats all sources alike.
    Source: temperature-based sampling as in arXiv 1907.05019.
    """
    parts = [
        float(rows) ** (1 / size_temperature) if weight is None else weight
        for weight, rows in zip(weights, num_rows, strict=True)
    ]
    return np.array(parts) / sum(parts)


def unit_size(batching: Batching, batch_size: int, sub_batch_size: int | None) -> int:
    """Rows that come from one source together.

    blended mixes row by row, as NV-Embed does; homogeneous gives a batch one source, as SFR-Embedding does;
    interleaved lays sub-batches of one source each side by side, as VLM2Vec-V2 does.
    """
    if batching == "interleaved":
        assert sub_batch_size is not None, "checked by the stage's configuration"
        return sub_batch_size
    return batch_size if batching == "homogeneous" else 1


def rows_of_sources(owed: np.ndarray, available: np.ndarray, batch_size: int, unit: int) -> np.ndarray:
    """Rows of each source in the next batch: int [sources].

    They are whole units and add up to the batch, or to less where all sources together have too few rows.

    Args:
        owed: rows that each source is due by the end of this batch and did not get in earlier ones.
        available: rows that each source has left, infinite where it is walked over again and again.
        batch_size: rows of the batch.
        unit: rows that come from one source together.
    """
    owed_units, available_units = owed / unit, np.floor(available / unit)
    units = np.clip(np.floor(owed_units), 0, available_units)
    missing = batch_size // unit - int(units.sum())
    while missing < 0:
        surplus = np.where(units > 0, units - owed_units, -np.inf)
        units[int(np.argmax(surplus))] -= 1
        missing += 1
    while missing > 0 and (units < available_units).any():
        by_debt = np.argsort(units - owed_units, kind="stable")
        chosen = by_debt[(units < available_units)[by_debt]][:missing]
        units[chosen] += 1
        missing -= len(chosen)
    return units.astype(int) * unit


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
    # Two rows are wanted next to row 7 of the batch; row 4 waits, 9 and 2 are fresh, and 9 clashes with 7:
    # 4 is taken, 9 begins to wait, 2 is taken. The budgets bound how many rows are looked at; a source with
    # too few fitting rows gives fewer than `count`.
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

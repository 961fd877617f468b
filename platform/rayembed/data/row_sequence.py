"""The order in which a source's rows are taken."""

from collections import deque
from collections.abc import Iterable

import numpy as np


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

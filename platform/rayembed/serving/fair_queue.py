"""Which waiting texts form the next batch.

Requests take turns, one text each a round, so that a request with thousands of texts delays a small one by a
batch and not by its whole length. Online work goes before bulk work; every eighth batch starts with bulk work
so that it always advances. Under backlog a batch takes texts of similar length from the front of that order,
because attention computes equal lengths together.

A batch has texts for one adapter. The adapters that texts wait for take turns too.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayembed.contract import TokenizedTexts
from rayembed.serving.messages import Priority

_WINDOW_BATCHES = 4
_BULK_TURN = 8


@dataclass(eq=False)
class Work:
    """The texts of one request: what waits, what is done, and who waits for it."""

    texts: TokenizedTexts
    priority: Priority
    answer: asyncio.Future[np.ndarray]
    adapter: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    waiting: list[int] = field(init=False)
    """Positions of the texts that are in no batch yet."""
    vectors: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.texts)))

    def store(self, position: int, vector: np.ndarray) -> None:
        """Keep one text's vector; the last one completes the answer."""
        self.vectors[position] = vector
        if len(self.vectors) == len(self.texts) and not self.answer.done():
            self.answer.set_result(np.stack([self.vectors[each] for each in range(len(self.texts))]))

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, eq=False)
class Item:
    """One text of a request."""

    work: Work
    position: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.work.texts.input_ids[self.position])


class FairQueue:
    """Waiting work of both priorities."""

    def __init__(self, token_budget: int):
        """`token_budget` is the most tokens in one batch; a longer text forms a batch alone."""
        self._token_budget = token_budget
        self._work: dict[Priority, list[Work]] = {"online": [], "bulk": []}
        self._batches = 0
        self._last_turns: dict[str, int] = {}

    def add(self, work: Work) -> None:
        """Put a request's texts at the end."""
        self._work[work.priority].append(work)

    def next_batch(self) -> list[Item]:
        """Remove and return the texts to compute next; empty when nothing waits."""
        for works in self._work.values():
            works[:] = [work for work in works if work.waiting and not work.answer.done()]
        window = self._window()
        if not window:
            return []
        self._batches += 1
        self._last_turns[window[0].work.adapter] = self._batches
        batch = self._fitting(window)
        taken: dict[Work, set[int]] = {}
        for item in batch:
            taken.setdefault(item.work, set()).add(item.position)
        for work, positions in taken.items():
            work.waiting = [position for position in work.waiting if position not in positions]
        return batch

    def _window(self) -> list[Item]:
        """The front of the waiting texts in fair order, a few batches long."""
        bulk_turn = self._batches % _BULK_TURN == _BULK_TURN - 1
        priorities: tuple[Priority, Priority] = ("bulk", "online") if bulk_turn else ("online", "bulk")
        window: list[Item] = []
        tokens = 0
        adapter = self._next_adapter(priorities)
        for priority in priorities:
            for item in _in_turns([work for work in self._work[priority] if work.adapter == adapter]):
                window.append(item)
                tokens += item.length
                if tokens >= _WINDOW_BATCHES * self._token_budget:
                    return window
        return window

    def _next_adapter(self, priorities: Sequence[Priority]) -> str | None:
        """The one whose last turn is longest ago, of those with waiting texts of the first priority."""
        waiting = next((works for priority in priorities if (works := self._work[priority])), [])
        adapters = (work.adapter for work in waiting)
        return min(adapters, key=lambda adapter: self._last_turns.get(adapter, 0), default=None)

    def _fitting(self, window: Sequence[Item]) -> list[Item]:
        """The first of the window and the texts nearest to it in length, within the budget."""
        first = window[0].length
        batch: list[Item] = []
        tokens = 0
        for item in sorted(window, key=lambda item: abs(item.length - first)):
            if batch and tokens + item.length > self._token_budget:
                break
            batch.append(item)
            tokens += item.length
        return batch


def _in_turns(works: Sequence[Work]) -> Iterator[Item]:
    """One text of each request, then the second one of each, and so on."""
    turn = 0
    waiting = list(works)
    while waiting:
        for work in waiting:
            yield Item(work, work.waiting[turn])
        turn += 1
        waiting = [work for work in waiting if len(work.waiting) > turn]

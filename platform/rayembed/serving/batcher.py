"""Batching by token count.

Ray Serve's own `@serve.batch` counts tokens too, but one failing item fails its whole batch, an item above
the budget is an error, and an idle model waits for a timeout. Here whatever waits when the model becomes free
forms the next batch, a failing batch is halved until only the item at fault fails, and abandoned items are
dropped.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rayembed.contract import TokenizedTexts

_SPEED_MEMORY = 0.8


@dataclass(eq=False)
class _Item:
    input_ids: list[int]
    pool_start: int
    truncated: bool
    vector: asyncio.Future[np.ndarray]


class TokenBatcher:
    """Feeds a model that encodes one batch at a time; to be used from one event loop."""

    def __init__(self, encode: Callable[[TokenizedTexts], np.ndarray], token_budget: int):
        """Args:
        encode: returns one vector a text, shape (N, D); called in a thread of its own, one call at a time.
        token_budget: most tokens in one call; a longer text is computed alone.
        """
        self._encode = encode
        self._token_budget = token_budget
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: deque[_Item] = deque()
        self._worker: asyncio.Task | None = None
        self.tokens_per_second = 0.0
        """Recent speed of the model; 0 before the first batch."""

    async def encode(self, texts: TokenizedTexts) -> np.ndarray:
        """Vectors of `texts`, shape (N, D).

        Raises whatever the model raised for one of these texts, whatever other callers send.
        """
        loop = asyncio.get_running_loop()
        items = [
            _Item(*fields, loop.create_future())
            for fields in zip(texts.input_ids, texts.pool_starts, texts.truncated, strict=True)
        ]
        self._waiting.extend(items)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        try:
            return np.stack(await asyncio.gather(*(item.vector for item in items)))
        finally:
            for item in items:
                item.vector.cancel()

    async def _work(self) -> None:
        while batch := self._next_batch():
            await self._compute(batch)

    def _next_batch(self) -> list[_Item]:
        """The longest-waiting items that fit the budget, at least one; empty when nothing waits."""
        batch: list[_Item] = []
        tokens = 0
        while self._waiting:
            item = self._waiting[0]
            if item.vector.done():
                self._waiting.popleft()
                continue
            if batch and tokens + len(item.input_ids) > self._token_budget:
                break
            batch.append(self._waiting.popleft())
            tokens += len(item.input_ids)
        return batch

    async def _compute(self, batch: Sequence[_Item]) -> None:
        texts = TokenizedTexts(
            [item.input_ids for item in batch],
            [item.pool_start for item in batch],
            [item.truncated for item in batch],
        )
        started = time.perf_counter()
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._finite_vectors, texts
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the caller whose text it is
            if len(batch) == 1:
                if not batch[0].vector.done():
                    batch[0].vector.set_exception(error)
                return
            middle = len(batch) // 2
            await self._compute(batch[:middle])
            await self._compute(batch[middle:])
            return
        self._measure(sum(texts.lengths), time.perf_counter() - started)
        for item, vector in zip(batch, vectors, strict=True):
            if not item.vector.done():
                item.vector.set_result(vector)

    def _finite_vectors(self, texts: TokenizedTexts) -> np.ndarray:
        vectors = self._encode(texts)
        if not np.isfinite(vectors).all():
            raise FloatingPointError("the model produced a vector that is not finite")
        return vectors

    def _measure(self, tokens: int, seconds: float) -> None:
        speed = tokens / max(seconds, 1e-9)
        known = self.tokens_per_second
        self.tokens_per_second = _SPEED_MEMORY * known + (1 - _SPEED_MEMORY) * speed if known else speed

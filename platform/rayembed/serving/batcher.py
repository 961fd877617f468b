"""Batching by token count.

Ray Serve's own `@serve.batch` counts tokens too, but one failing item fails its whole batch, an item above
the budget is an error, and an idle model waits for a timeout. Here whatever waits when the model becomes free
forms the next batch, a failing batch is halved until only the item at fault fails, and abandoned items are
dropped.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from rayembed.contract import TokenizedTexts
from rayembed.serving.fair_queue import FairQueue, Item, Work
from rayembed.serving.messages import Priority
from rayembed.serving.metrics import ReplicaMetrics

_SPEED_MEMORY = 0.8


class TokenBatcher:
    """Feeds a model that encodes one batch at a time; to be used from one event loop."""

    def __init__(
        self,
        encode: Callable[[TokenizedTexts, str], np.ndarray],
        token_budget: int,
        metrics: ReplicaMetrics,
        thread: Executor,
    ):
        """Args:
        encode: given texts and the name of an adapter returns one vector a text, shape (N, D); called in
            `thread`, one call at a time.
        token_budget: most tokens in one call; a longer text is computed alone.
        metrics: where waiting and computing times go.
        thread: the model's own thread.
        """
        self._encode = encode
        self._metrics = metrics
        self._queue = FairQueue(token_budget)
        self._thread = thread
        self._worker: asyncio.Task | None = None
        self.tokens_per_second = 0.0
        """Recent speed of the model; 0 before the first batch."""

    async def encode(
        self, texts: TokenizedTexts, priority: Priority = "online", adapter: str = ""
    ) -> np.ndarray:
        """Vectors of `texts`, shape (N, D); the work is dropped when the caller goes away.

        Raises whatever the model raised for one of these texts, whatever other callers send.
        """
        loop = asyncio.get_running_loop()
        work = Work(texts, priority, loop.create_future(), adapter)
        self._queue.add(work)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        try:
            return await work.answer
        finally:
            work.answer.cancel()

    async def _work(self) -> None:
        while batch := self._queue.next_batch():
            now = time.perf_counter()
            for item in batch:
                self._metrics.wait_seconds.observe(now - item.work.arrived)
            await self._compute(batch)

    async def _compute(self, batch: Sequence[Item]) -> None:
        texts = TokenizedTexts(
            [item.work.texts.input_ids[item.position] for item in batch],
            [item.work.texts.pool_starts[item.position] for item in batch],
            [item.work.texts.truncated[item.position] for item in batch],
        )
        started = time.perf_counter()
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._finite_vectors, texts, batch[0].work.adapter
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the caller whose text it is
            if len(batch) == 1:
                batch[0].work.fail(error)
                return
            middle = len(batch) // 2
            await self._compute(batch[:middle])
            await self._compute(batch[middle:])
            return
        self._measure(sum(texts.lengths), time.perf_counter() - started)
        for item, vector in zip(batch, vectors, strict=True):
            item.work.store(item.position, vector)

    def _finite_vectors(self, texts: TokenizedTexts, adapter: str) -> np.ndarray:
        vectors = self._encode(texts, adapter)
        if not np.isfinite(vectors).all():
            raise FloatingPointError("the model produced a vector that is not finite")
        return vectors

    def _measure(self, tokens: int, seconds: float) -> None:
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.compute_seconds.observe(seconds)
        speed = tokens / max(seconds, 1e-9)
        known = self.tokens_per_second
        self.tokens_per_second = _SPEED_MEMORY * known + (1 - _SPEED_MEMORY) * speed if known else speed

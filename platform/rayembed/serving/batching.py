"""Which waiting texts are computed together, by token count.

Ray Serve's own `@serve.batch` counts tokens too, but one failing item fails its whole batch, an item above
the budget is an error, and an idle model waits for a timeout. Here whatever waits when the model becomes free
forms the next batch. A failing batch is halved until only the item at fault fails. Abandoned items are
dropped.

Clients take turns, one text each a round: one with thousands of texts delays a small one by a batch and not
by its whole length. A client is an API key, or a single request without keys. Online work goes before bulk
work, which fills what online work leaves. Every eighth batch is half bulk work, which therefore always
advances. Under backlog a batch takes texts of similar length from the front of that order, because attention
computes equal lengths together. A batch has texts for one adapter. The adapters that texts wait for take
turns too.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from rayembed.contract import TokenizedTexts
from rayembed.serving.messages import Priority
from rayembed.serving.metrics import ReplicaMetrics

_SPEED_MEMORY = 0.8
_WINDOW_BATCHES = 4
_BULK_TURN = 8


@dataclass(eq=False)
class QueuedRequest:
    """The texts of one request: what waits, what is done, and who waits for it."""

    texts: TokenizedTexts
    priority: Priority
    answer: asyncio.Future[np.ndarray]
    adapter: str = ""
    client: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    waiting: list[int] = field(init=False)
    """Positions of the texts that are in no batch yet."""
    last_turn: int = 0
    """Number of the last batch with texts of this request, or of the one before it came."""
    missing: int = field(init=False)
    """Number of texts without a vector."""
    vectors: np.ndarray | None = None
    """Shape (N, D), filled as batches are computed."""

    def __post_init__(self) -> None:
        self.missing = len(self.texts)
        self.waiting = list(range(len(self.texts)))

    def store(self, position: int, vector: np.ndarray) -> None:
        """Keep one text's vector; the last one completes the answer."""
        if self.vectors is None:
            self.vectors = np.empty((len(self.texts), len(vector)), vector.dtype)
        self.vectors[position] = vector
        self.missing -= 1
        if not self.missing and not self.answer.done():
            self.answer.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, eq=False)
class QueuedText:
    """One text of a request."""

    request: QueuedRequest
    position: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.request.texts.input_ids[self.position])


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
        self.failures = 0
        """Passes of a single text that failed since the last pass that did not."""
        self._pass_began: float | None = None

    async def encode(
        self, texts: TokenizedTexts, priority: Priority = "online", adapter: str = "", client: str = ""
    ) -> np.ndarray:
        """Vectors of `texts`, shape (N, D); the work is dropped when the caller goes away.

        Raises whatever the model raised for one of these texts, whatever other callers send.
        """
        loop = asyncio.get_running_loop()
        queued = QueuedRequest(texts, priority, loop.create_future(), adapter, client)
        self._queue.add(queued)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        try:
            return await queued.answer
        finally:
            queued.answer.cancel()

    @property
    def seconds_in_pass(self) -> float:
        """How long the model has been computing its present batch."""
        return time.perf_counter() - self._pass_began if self._pass_began else 0.0

    async def _work(self) -> None:
        while batch := self._queue.next_batch():
            now = time.perf_counter()
            for item in batch:
                self._metrics.wait_seconds.observe(now - item.request.arrived)
            await self._compute(batch)

    async def _compute(self, batch: Sequence[QueuedText]) -> None:
        texts = TokenizedTexts(
            [item.request.texts.input_ids[item.position] for item in batch],
            [item.request.texts.pool_starts[item.position] for item in batch],
            [item.request.texts.truncated[item.position] for item in batch],
        )
        started = self._pass_began = time.perf_counter()
        middle = 0
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._finite_vectors, texts, batch[0].request.adapter
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the caller whose text it is
            if len(batch) == 1:
                self.failures += 1
                batch[0].request.fail(error)
                return
            middle = len(batch) // 2
        finally:
            self._pass_began = None
        if middle:
            # Not inside `except`: the error would keep the tensors of the failed pass in memory.
            await self._compute(batch[:middle])
            await self._compute(batch[middle:])
            return
        self.failures = 0
        self._measure(sum(texts.lengths), time.perf_counter() - started)
        for item, vector in zip(batch, vectors, strict=True):
            item.request.store(item.position, vector)

    def _finite_vectors(self, texts: TokenizedTexts, adapter: str) -> np.ndarray:
        vectors = self._encode(texts, adapter)
        if len(vectors) != len(texts):
            raise ValueError(f"the model made {len(vectors)} vectors of {len(texts)} texts")
        if not np.isfinite(vectors).all():
            raise FloatingPointError("the model produced a vector that is not finite")
        return vectors

    def _measure(self, tokens: int, seconds: float) -> None:
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.compute_seconds.observe(seconds)
        speed = tokens / max(seconds, 1e-9)
        known = self.tokens_per_second
        self.tokens_per_second = _SPEED_MEMORY * known + (1 - _SPEED_MEMORY) * speed if known else speed


class FairQueue:
    """Waiting work of both priorities."""

    def __init__(self, token_budget: int):
        """`token_budget` is the most tokens in one batch; a longer text forms a batch alone."""
        self._token_budget = token_budget
        self._requests: dict[Priority, list[QueuedRequest]] = {"online": [], "bulk": []}
        self._batches = 0
        self._adapter_turns: dict[str, int] = {}
        self._client_turns: dict[str, int] = {}

    def add(self, request: QueuedRequest) -> None:
        """Put a request's texts at the end."""
        request.last_turn = self._batches
        self._requests[request.priority].append(request)

    def next_batch(self) -> list[QueuedText]:
        """Remove and return the texts to compute next; empty when nothing waits."""
        for requests in self._requests.values():
            requests[:] = [each for each in requests if each.waiting and not each.answer.done()]
        online, bulk = self._requests["online"], self._requests["bulk"]
        if not online and not bulk:
            return []
        self._batches += 1
        bulk_turn = bool(bulk) and (not online or self._batches % _BULK_TURN == 0)
        adapter = self._next_adapter(bulk if bulk_turn else online)
        budget = self._token_budget
        if not bulk_turn:
            batch = self._take(online, adapter, budget)
            if not online:
                batch += self._take(bulk, adapter, budget - _tokens(batch), into=batch)
        else:  # half of a batch, where online work waits
            batch = self._take(bulk, adapter, budget // 2 if online else budget)
            batch += self._take(online, adapter, budget - _tokens(batch), into=batch)
        self._adapter_turns[adapter] = self._batches
        for item in batch:
            item.request.last_turn = self._batches
            if item.request.client:
                self._client_turns[item.request.client] = self._batches
        return batch

    def _next_adapter(self, requests: Sequence[QueuedRequest]) -> str:
        """The one whose last turn is longest ago."""
        return min((each.adapter for each in requests), key=lambda name: self._adapter_turns.get(name, 0))

    def _take(
        self, requests: list[QueuedRequest], adapter: str, budget: int, into: Sequence[QueuedText] = ()
    ) -> list[QueuedText]:
        """Remove the texts that are next and those nearest to them in length, within a budget.

        The client whose last turn is longest ago sets the length. Every client does so in turn, and therefore
        no text waits for more batches than there are clients, however unlike the others it is in length.
        """
        window: list[QueuedText] = []
        tokens = 0
        for item in self._in_turns([each for each in requests if each.adapter == adapter]):
            window.append(item)
            tokens += item.length
            if tokens >= _WINDOW_BATCHES * self._token_budget:
                break
        if not window:
            return []
        first = window[0].length
        batch: list[QueuedText] = []
        tokens = 0
        for item in sorted(window, key=lambda item: abs(item.length - first)):
            if (batch or into) and tokens + item.length > budget:
                break
            batch.append(item)
            tokens += item.length
        taken: dict[QueuedRequest, set[int]] = {}
        for item in batch:
            taken.setdefault(item.request, set()).add(item.position)
        for request, positions in taken.items():
            request.waiting = [each for each in request.waiting if each not in positions]
        requests[:] = [each for each in requests if each.waiting]
        return batch

    def _in_turns(self, requests: Sequence[QueuedRequest]) -> Iterator[QueuedText]:
        """One text of each client, then the second one of each, and so on.

        Clients with the texts a1 a2 a3, b1 and c1 c2 give a1 b1 c1 a2 c2 a3, or, where a was in the last
        batch and the others were not, b1 c1 a1 c2 a2 a3.
        """
        clients: dict[Hashable, list[QueuedRequest]] = {}
        for request in requests:
            clients.setdefault(request.client or id(request), []).append(request)
        lines = [
            (QueuedText(request, position) for request in own for position in request.waiting)
            for own in sorted(clients.values(), key=self._last_turn)
        ]
        for row in itertools.zip_longest(*lines):
            yield from (item for item in row if item is not None)

    def _last_turn(self, own: Sequence[QueuedRequest]) -> int:
        return self._client_turns.get(own[0].client, own[0].last_turn)


def _tokens(batch: Sequence[QueuedText]) -> int:
    return sum(item.length for item in batch)

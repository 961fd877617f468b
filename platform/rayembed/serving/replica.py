"""The model replica: tokenises, admits, batches and cuts."""

import asyncio
import contextlib
import copy
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import psutil
import ray
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.exceptions import RayServeException

from rayembed.common import logs
from rayembed.common.errors import ConfigError, RequestError
from rayembed.contract import TokenizedTexts
from rayembed.contract.vectors import cut_array
from rayembed.engine.engine import Engine
from rayembed.serving import tracing
from rayembed.serving.autoscaling import QUEUED_TOKENS
from rayembed.serving.batching import TokenBatcher
from rayembed.serving.cache import CachedVector, input_keys, make_cache
from rayembed.serving.config import ModelSettings, Served
from rayembed.serving.errors import ApiError, Problem, failed
from rayembed.serving.limits import TokenLimit
from rayembed.serving.messages import (
    Content,
    DecodeRequest,
    Embeddings,
    EncodeRequest,
    Inputs,
    ModelCard,
    ReplicaStatus,
    TokenizeRequest,
    Truncation,
)
from rayembed.serving.metrics import ReplicaMetrics
from rayembed.serving.token_routing import replica_name
from rayembed.serving.tokenizing import MOST_SHOWN, RequestTokenizer, slices

logger = logging.getLogger(__name__)

REPLICA_NAME = "EmbeddingReplica"
_SHORT_CHARACTERS = 2048
_KNOWN_TEXT = "A first text makes a broken checkpoint fail here instead of on a request."
_FAILURES_IN_A_ROW = 3
_LONGEST_PASS_S = 300
_GIB = 2**30
_SPARE_MEMORY = 4 * _GIB
Answer = TypeVar("Answer")


def load_engine(settings: ModelSettings) -> Engine:
    """Load the checkpoint onto the device that the replica was given; adapters are added to it later."""
    return Engine.load(
        settings.checkpoint_path,
        precision=settings.precision,
        fp32_layers=settings.fp32_layers,
        quantization=settings.quantization,
        compiled=settings.compiled,
        token_budget=settings.tokens_per_pass,
        backend=settings.backend,
    )


class EmbeddingReplica:
    """Ray Serve deployment around one engine."""

    def __init__(self, settings: ModelSettings, load: Callable[[ModelSettings], Engine] = load_engine):
        logs.configure()
        tracing.configure()
        self._settings = settings
        self.name = process_name()
        # Loaded and used by the same thread: a second one would get an OpenMP pool next to the first, and
        # both would sleep at every barrier (see `rayembed.data.stream`).
        self._model_thread = model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._engine, self._digests = model_thread.submit(_load_all, settings, load).result()
        self._most_memory = _most_memory(settings, resident_memory())
        self._started = time.time()
        self._limit = TokenLimit(settings.max_queued_tokens)
        self._metrics = ReplicaMetrics(settings.served_name)
        self._batcher = TokenBatcher(self._compute, settings.tokens_per_pass, self._metrics, model_thread)
        self._caching = settings.cache != "off"
        self._cache = make_cache(settings.cache, settings.cache_bytes)
        self._unfinished: set[asyncio.Task] = set()
        # Two, because a tokenizer's settings are shared state: one for this thread, one for the other.
        self._tokenizer, self._long_tokenizer = (
            RequestTokenizer(self._engine.contract, tokenizer, settings)
            for tokenizer in (copy.deepcopy(self._engine.tokenizer), self._engine.tokenizer)
        )
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def encode(self, request: EncodeRequest) -> Embeddings | Problem:
        """Vectors for a request, or why it gets none.

        Refusals and failures are values, which say which replica they are from.
        """
        with tracing.span("encode", request.trace, inputs=len(request)):
            return await self._answer_or_problem(self._encode(request))

    async def _encode(self, request: EncodeRequest) -> Embeddings:
        self._check_dimensions(request.dimensions)
        keys = self._keys(request)
        known = await self._cache.find(keys) if self._caching else [None] * len(keys)
        first: dict[Any, int] = {}  # where each distinct input stands
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        missing = [position for position in first.values() if known[position] is None]
        groups = _chosen(request.groups, missing)
        estimate = sum(group.estimated_tokens(self._tokenizer.max_length) for group in groups)
        with self._limit.admit(estimate, request.priority, self._batcher.tokens_per_second) as hold:
            texts = await self._tokenize(groups, request.truncate)
            hold.change(sum(texts.lengths))
            vectors: Sequence[np.ndarray] | np.ndarray = ()
            if missing:
                vectors = await self._batcher.encode(texts, request.priority, request.adapter, request.client)
        computed = dict(zip(missing, map(CachedVector, vectors, texts.lengths, texts.truncated), strict=True))
        if self._caching and computed:
            self._in_background(
                self._cache.store({keys[position]: entry for position, entry in computed.items()})
            )
        answers = [entry or computed[first[key]] for key, entry in zip(keys, known, strict=True)]
        if len(missing) < len(answers):
            vectors = np.stack([answer.vector for answer in answers])
        answer = Embeddings(
            cut_array(np.asarray(vectors), request.dimensions, normalize=request.normalize),
            tokens=sum(answer.tokens for answer in answers),
            truncated=sum(answer.truncated for answer in answers),
            digest=self._digests[request.adapter],
            cached=len(known) - known.count(None),
            ranges=self._engine.contract.vector_ranges if request.wants_ranges else None,
        )
        self._metrics.count(answer)
        return answer

    def _keys(self, request: EncodeRequest) -> list[Any]:
        """For each input what tells it from others, in all requests where vectors are kept."""
        if not self._caching:
            return [
                (number, item if isinstance(item, str) else tuple(item))
                for number, group in enumerate(request.groups)
                for item in group.texts or group.token_ids
            ]
        rules = (
            self._digests[request.adapter],
            self._engine.precision,
            self._settings.fp32_layers,
            self._settings.quantization,
            self._settings.query_instruction,
            self._tokenizer.max_length,
        )
        return [key for group in request.groups for key in input_keys(group, rules, request.truncate)]

    async def _tokenize(self, groups: Sequence[Inputs], truncate: Truncation) -> TokenizedTexts:
        """Tokens of all inputs, in order.

        A short request takes some 35 us, less than a call of another thread. A long one goes there in slices,
        between which others have their turn.
        """
        texts = TokenizedTexts([], [], [])
        started = time.perf_counter()
        for group in groups:
            if group.characters <= _SHORT_CHARACTERS:
                texts.extend(self._tokenizer(group, truncate))
                continue
            for part in slices(group):
                texts.extend(await self._in_tokenizer_thread(self._long_tokenizer, part, truncate))
        self._metrics.tokenize_seconds.observe(time.perf_counter() - started)
        return texts

    def _compute(self, texts: TokenizedTexts, adapter: str) -> np.ndarray:
        return self._engine.encode_tokens(texts, adapter=adapter)

    async def _in_tokenizer_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer_thread, function, *arguments)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)

    def _check_dimensions(self, dimensions: int | None) -> None:
        width = self._engine.dimensions
        if dimensions is not None and dimensions > width:
            raise ApiError(Problem(400, f"dimensions must be between 1 and {width}", param="dimensions"))

    async def tokenize(self, request: TokenizeRequest) -> Content | Problem:
        """The tokens of texts, or why there are none."""
        return await self._answer_or_problem(self._show(request))

    async def _show(self, request: TokenizeRequest) -> Content:
        with self._admit_shown(request, "inputs"):
            return Content(*await self._in_tokenizer_thread(self._long_tokenizer.show, request))

    async def decode(self, request: DecodeRequest) -> list[str] | Problem:
        """The texts of token ids, or why there are none."""
        return await self._answer_or_problem(self._decode(request))

    async def _decode(self, request: DecodeRequest) -> list[str]:
        with self._admit_shown(request, "ids"):
            return await self._in_tokenizer_thread(self._long_tokenizer.decode, request)

    def _admit_shown(
        self, request: TokenizeRequest | DecodeRequest, field: str
    ) -> contextlib.AbstractContextManager[Any]:
        tokens = request.estimated_tokens
        if tokens > MOST_SHOWN:
            message = f"the {field} have more than {MOST_SHOWN} tokens; send several requests"
            raise ApiError(Problem(413, message, param=field))
        return self._limit.admit(tokens, "online", self._batcher.tokens_per_second)

    async def _answer_or_problem(self, work: Awaitable[Answer]) -> Answer | Problem:
        try:
            return await work
        except ApiError as error:
            problem = error.problem
        except RequestError as error:
            problem = Problem(400, str(error), param=error.parameter)
        except Exception:
            logger.exception("a request failed")
            problem = failed()
        return replace(problem, replica=self.name)

    async def describe(self) -> list[ModelCard]:
        """The served model and its adapters; an answer also means that the replica is ready."""
        return [self._card(served) for served in self._settings.served]

    def _card(self, served: Served) -> ModelCard:
        return ModelCard(
            id=served.name,
            created=int(self._started),
            digest=self._digests[served.adapter],
            dimensions=self._engine.dimensions,
            max_length=self._tokenizer.max_length,
            vocabulary=len(self._engine.tokenizer),
            precision=self._engine.precision,
            pooling=self._engine.pooling,
            instructions=self._engine.contract.instructions,
            symmetric=list(self._engine.contract.symmetric),
            aliases=list(served.aliases),
        )

    async def check_health(self) -> None:
        """Raises where only another process helps; called by Ray Serve, and by the pool of a local endpoint.

        After several failures a text that is known to work tells a broken model from texts that break it.
        """
        seconds = self._batcher.seconds_in_pass
        if seconds > _LONGEST_PASS_S:
            raise RuntimeError(f"a forward pass has not ended for {seconds:.0f} s")
        if self._batcher.failures >= _FAILURES_IN_A_ROW:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._model_thread, self._engine.encode, [_KNOWN_TEXT])
            self._batcher.failures = 0
        if (resident := resident_memory()) > self._most_memory:
            raise RuntimeError(
                f"its memory has grown to {resident / _GIB:.1f} of at most {self._most_memory / _GIB:.1f} GiB"
            )

    async def status(self) -> ReplicaStatus:
        """Load and speed of this replica."""
        return ReplicaStatus(
            self.name,
            os.getpid(),
            self._limit.queued,
            self._limit.max_tokens,
            round(self._batcher.tokens_per_second, 1),
            round(time.time() - self._started, 1),
            self._engine.digest,
        )

    async def metrics(self) -> tuple[str, list[Metric]]:
        """This process's name and the present values of its metrics."""
        self._metrics.queued_tokens.set(self._limit.queued)
        self._metrics.tokens_per_second.set(self._batcher.tokens_per_second)
        return self.name, self._metrics.collect()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve for the autoscaler."""
        return {QUEUED_TOKENS: float(self._limit.queued)}


def process_name() -> str:
    """Name of the Serve replica or the Ray actor that this code runs in; "local" in any other process."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        return f"{REPLICA_NAME}#{actor[:8]}" if actor else "local"  # the end is the job's
    return replica_name(context.replica_id)


def resident_memory() -> int:
    """Bytes of this process that lie in memory."""
    return psutil.Process().memory_info().rss


def _most_memory(settings: ModelSettings, loaded: int) -> int:
    """Bytes above which a replica leaks, whose process has `loaded` bytes before its first request.

    A forward pass takes less than the weights, but for small models, and glibc keeps what it took.

    Raises:
        ConfigError: the setting is below what the model takes.
    """
    most = settings.max_memory_bytes
    if most is None:
        return 2 * loaded + settings.cache_bytes + _SPARE_MEMORY
    if most < loaded:
        raise ConfigError(f"max_memory_bytes is {most}, and the loaded model takes {loaded}; raise it")
    return most


def _load_all(
    settings: ModelSettings, load: Callable[[ModelSettings], Engine]
) -> tuple[Engine, dict[str, str]]:
    """The engine with all adapters, and the digest of the weights by name of the adapter; "" is the model."""
    engine = load(settings)
    digests = {"": engine.digest}
    for adapter in settings.adapters:
        digest = engine.add_adapter(adapter.served_name, adapter.adapter_path)
        digests[adapter.served_name] = hashlib.sha256(f"{engine.digest}{digest}".encode()).hexdigest()
    _warm_up(engine, settings, list(digests))
    return engine, digests


def _warm_up(engine: Engine, settings: ModelSettings, adapters: Sequence[str]) -> None:
    """Compute a short text with each adapter, and one pass of long texts that fills the token budget.

    Kernels are built and memory is taken here; what is broken or too large fails here, not on a request.
    """
    known = engine.contract.tokenize(engine.tokenizer, [_KNOWN_TEXT])
    for adapter in adapters:
        engine.encode_tokens(known, adapter=adapter)
    budget = settings.tokens_per_pass
    longest = min(settings.max_length or budget, engine.contract.max_length, budget)
    [ids] = known.input_ids
    texts = budget // longest
    long_ids = (ids * longest)[:longest]
    engine.encode_tokens(TokenizedTexts([long_ids] * texts, [0] * texts, [False] * texts))


def _chosen(groups: Sequence[Inputs], positions: Sequence[int]) -> list[Inputs]:
    """The groups with the inputs at some positions, which count through all groups in ascending order."""
    chosen = []
    first = 0
    for group in groups:
        inside = range(first, first + len(group))
        chosen.append(group.at([each - first for each in positions if each in inside]))
        first += len(group)
    return [group for group in chosen if len(group)]

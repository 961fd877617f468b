"""The model replica: tokenises, admits, batches and cuts."""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import ray
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.exceptions import RayServeException

from rayembed.common import logs
from rayembed.common.errors import RequestError
from rayembed.contract import TokenizedTexts
from rayembed.contract.vectors import cut_array
from rayembed.engine.engine import Engine
from rayembed.serving import tracing
from rayembed.serving.autoscaling import QUEUED_TOKENS
from rayembed.serving.batching import TokenBatcher
from rayembed.serving.cache import CachedVector, input_keys, make_cache
from rayembed.serving.config import ModelSettings, Served
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.limits import TokenLimit
from rayembed.serving.messages import (
    Embeddings,
    EncodeRequest,
    Inputs,
    ModelCard,
    ReplicaStatus,
    Token,
    TokenizeRequest,
)
from rayembed.serving.metrics import ReplicaMetrics
from rayembed.serving.tokenizing import RequestTokenizer

REPLICA_NAME = "EmbeddingReplica"


def load_engine(settings: ModelSettings) -> Engine:
    """Load the checkpoint onto the device that the replica was given; adapters are added to it later."""
    return Engine.load(
        settings.checkpoint_path,
        precision=settings.precision,
        token_budget=settings.tokens_per_pass,
    )


class EmbeddingReplica:
    """Ray Serve deployment around one engine."""

    def __init__(self, settings: ModelSettings, load: Callable[[ModelSettings], Engine] = load_engine):
        logs.configure()
        tracing.configure()
        self._settings = settings
        # Loaded and used by the same thread: a second one would get an OpenMP pool next to the first, and
        # both would sleep at every barrier (see `rayembed.data.stream`).
        model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._engine, self._digests = model_thread.submit(_load_all, settings, load).result()
        self._started = time.time()
        self._limit = TokenLimit(settings.max_queued_tokens)
        self._metrics = ReplicaMetrics(settings.served_name)
        self._batcher = TokenBatcher(self._compute, settings.tokens_per_pass, self._metrics, model_thread)
        self._cache = make_cache(settings.cache, settings.cache_bytes)
        self._tokenizer = RequestTokenizer(self._engine.contract, self._engine.tokenizer, settings.max_length)
        # One thread, because a tokenizer's truncation settings are shared state; it is parallel inside.
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def encode(self, request: EncodeRequest) -> Embeddings | Problem:
        """Vectors for a request, or why it gets none.

        Refusals are values: raising one would cost a logged traceback, most of all under overload.
        """
        with tracing.span("encode", request.trace, inputs=len(request)):
            try:
                self._check_dimensions(request.dimensions)
                return await self._encode(request)
            except ApiError as error:
                return error.problem
            except RequestError as error:
                return Problem(400, str(error), param=error.parameter)

    async def _encode(self, request: EncodeRequest) -> Embeddings:
        # Before the work of tokenising.
        self._limit.check_room(1, request.priority, self._batcher.tokens_per_second)
        keys = self._keys(request)
        known = await self._cache.find(keys)
        texts = await self._tokenize_missing(request, known)
        tokens = sum(texts.lengths)
        self._limit.check_fits(tokens, request.priority, self._batcher.tokens_per_second)
        vectors: Sequence[np.ndarray] | np.ndarray = ()
        if len(texts):
            with self._limit.hold(tokens):
                vectors = await self._batcher.encode(texts, request.priority, request.adapter)
        computed = map(CachedVector, vectors, texts.lengths, texts.truncated)
        answers = [entry or next(computed) for entry in known]
        await self._cache.store(
            {key: answer for key, answer, entry in zip(keys, answers, known, strict=True) if entry is None}
        )
        cached = len(answers) - len(texts)
        if cached:
            vectors = np.stack([answer.vector for answer in answers])
        answer = Embeddings(
            cut_array(np.asarray(vectors), request.dimensions, normalize=request.normalize),
            tokens=sum(answer.tokens for answer in answers),
            truncated=sum(answer.truncated for answer in answers),
            digest=self._digests[request.adapter],
            cached=cached,
        )
        self._metrics.count(answer)
        return answer

    def _keys(self, request: EncodeRequest) -> list[str]:
        if self._settings.cache == "off":
            return [""] * len(request)
        digest, length = self._digests[request.adapter], self._tokenizer.max_length
        return [
            key for group in request.groups for key in input_keys(group, digest, length, request.truncate)
        ]

    async def _tokenize_missing(
        self, request: EncodeRequest, known: Sequence[CachedVector | None]
    ) -> TokenizedTexts:
        """Tokens of the inputs whose vector is not known, in order."""
        texts = TokenizedTexts([], [], [])
        first = 0
        started = time.perf_counter()
        for group in request.groups:
            missing = [position for position in range(len(group)) if known[first + position] is None]
            first += len(group)
            if missing:
                part = await self._in_tokenizer_thread(
                    self._tokenizer, _chosen(group, missing), request.truncate
                )
                texts.input_ids.extend(part.input_ids)
                texts.pool_starts.extend(part.pool_starts)
                texts.truncated.extend(part.truncated)
        self._metrics.tokenize_seconds.observe(time.perf_counter() - started)
        return texts

    def _compute(self, texts: TokenizedTexts, adapter: str) -> np.ndarray:
        return self._engine.encode_tokens(texts, adapter=adapter)

    async def _in_tokenizer_thread(self, function: Callable, *arguments):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer_thread, function, *arguments)

    def _check_dimensions(self, dimensions: int | None) -> None:
        width = self._engine.dimensions
        if dimensions is not None and dimensions > width:
            raise ApiError(Problem(400, f"dimensions must be between 1 and {width}", param="dimensions"))

    async def tokenize(self, request: TokenizeRequest) -> list[list[Token]] | Problem:
        """The tokens of texts, or why there are none."""
        try:
            return await self._in_tokenizer_thread(self._tokenizer.show, request)
        except ApiError as error:
            return error.problem
        except RequestError as error:
            return Problem(400, str(error), param=error.parameter)

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
            instructions=self._engine.contract.instructions,
            aliases=list(served.aliases),
        )

    async def status(self) -> ReplicaStatus:
        """Load and speed of this replica."""
        return ReplicaStatus(
            process_name(),
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
        return process_name(), self._metrics.collect()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve for the autoscaler."""
        return {QUEUED_TOKENS: float(self._limit.queued)}


def process_name() -> str:
    """Name of the Serve replica or the Ray actor that this code runs in; "local" in any other process."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        return f"{REPLICA_NAME}#{actor[-8:]}" if actor else "local"
    return f"{context.deployment}#{context.replica_tag}"


def _load_all(
    settings: ModelSettings, load: Callable[[ModelSettings], Engine]
) -> tuple[Engine, dict[str, str]]:
    """The engine with all adapters, and the digest of the weights by name of the adapter; "" is the model."""
    engine = load(settings)
    digests = {"": engine.digest}
    for adapter in settings.adapters:
        digest = engine.add_adapter(adapter.served_name, adapter.adapter_path)
        digests[adapter.served_name] = hashlib.sha256(f"{engine.digest}{digest}".encode()).hexdigest()
    engine.encode(["A first text makes a broken checkpoint fail here instead of on a request."])
    return engine, digests


def _chosen(group: Inputs, positions: Sequence[int]) -> Inputs:
    """The same group with only some of its inputs."""
    if len(positions) == len(group):
        return group
    return replace(
        group,
        texts=[group.texts[position] for position in positions] if group.texts else (),
        token_ids=[group.token_ids[position] for position in positions] if group.token_ids else (),
    )

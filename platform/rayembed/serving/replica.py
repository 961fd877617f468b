"""The model replica: tokenises, admits, batches and cuts."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rayembed import logs
from rayembed.contract import Contract, TokenizedTexts
from rayembed.errors import RequestError
from rayembed.inference.engine import Engine
from rayembed.serving.batcher import TokenBatcher
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem, overloaded
from rayembed.serving.limits import TokenLimit
from rayembed.serving.schemas import ModelCard

QUERY_INSTRUCTION = "query"
"""Name of the contract's instruction that `input_type: query` stands for."""


@dataclass(frozen=True)
class EncodeRequest:
    """What the ingress asks of a replica: N texts, or N lists of token ids, under one instruction."""

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    instruction: str | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Embeddings:
    """N vectors of one model.

    Attributes:
        vectors: fp32 unit vectors, shape (N, D).
        tokens: tokens computed, instruction and end token included.
        truncated: number of inputs that were cut to the maximum length.
        digest: digest of the checkpoint that made the vectors.
    """

    vectors: np.ndarray
    tokens: int
    truncated: int
    digest: str


def load_engine(config: ServeConfig) -> Engine:
    """Load the checkpoint onto the device that the replica was given."""
    return Engine.load(
        config.checkpoint_path,
        device="cuda" if config.num_gpus else "cpu",
        precision=config.precision,
        token_budget=config.token_budget,
    )


class Encoder:
    """Ray Serve deployment around one engine."""

    def __init__(self, config: ServeConfig, load: Callable[[ServeConfig], Engine] = load_engine):
        logs.configure()
        self._config = config
        self._engine = load(config)
        self._started = int(time.time())
        self._limit = TokenLimit(config.max_queued_tokens)
        self._batcher = TokenBatcher(self._engine.encode_tokens, config.token_budget)
        # One thread, because a tokenizer's truncation settings are shared state; it is parallel inside.
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._engine.encode(["A first text makes a broken checkpoint fail here instead of on a request."])

    async def encode(self, request: EncodeRequest) -> Embeddings | Problem:
        """Vectors for a request, or why it gets none.

        Refusals are values: raising one would cost a logged traceback, most of all under overload.
        """
        try:
            self._check_dimensions(request.dimensions)
            instruction = choose_instruction(self._engine.contract, request)
            texts = await asyncio.get_running_loop().run_in_executor(
                self._tokenizer_thread, self._tokenize, request, instruction
            )
        except ApiError as error:
            return error.problem
        except RequestError as error:
            return Problem(400, str(error))
        tokens = sum(texts.lengths)
        if tokens > self._limit.max_tokens:
            return Problem(
                413,
                f"the request has {tokens} tokens and the endpoint accepts {self._limit.max_tokens} at once; "
                "spread the inputs over several requests",
                param="input",
            )
        if not self._limit.has_room(tokens):
            return overloaded(self._limit.retry_after_s(self._batcher.tokens_per_second))
        with self._limit.hold(tokens):
            vectors = await self._batcher.encode(texts)
        return Embeddings(cut(vectors, request.dimensions), tokens, sum(texts.truncated), self._engine.digest)

    async def describe(self) -> ModelCard:
        """The served model; an answer also means that the replica is ready."""
        return ModelCard(
            id=self._config.served_name,
            created=self._started,
            digest=self._engine.digest,
            dimensions=self._engine.dimensions,
            max_length=self._max_length,
            instructions=self._engine.contract.instructions,
        )

    @property
    def _max_length(self) -> int:
        own = self._engine.contract.max_length
        return min(self._config.max_length or own, own)

    def _check_dimensions(self, dimensions: int | None) -> None:
        width = self._engine.dimensions
        if dimensions is not None and dimensions > width:
            raise ApiError(Problem(400, f"dimensions must be between 1 and {width}", param="dimensions"))

    def _tokenize(self, request: EncodeRequest, instruction: str | None) -> TokenizedTexts:
        contract, tokenizer = self._engine.contract, self._engine.tokenizer
        if request.texts:
            return contract.tokenize(tokenizer, request.texts, instruction, self._max_length)
        vocabulary = len(tokenizer)
        if any(token_id >= vocabulary for ids in request.token_ids for token_id in ids):
            raise ApiError(Problem(400, f"input: token ids must be below {vocabulary}", param="input"))
        return contract.tokenize_ids(tokenizer, request.token_ids, instruction, self._max_length)


def choose_instruction(contract: Contract, request: EncodeRequest) -> str | None:
    """Instruction text of a request: given literally, by name, or through its input type; None for none.

    Raises:
        ApiError: the name is unknown, or the model was trained with instructions and has none for queries.
    """
    known = contract.instructions
    names = ", ".join(sorted(known)) or "none; send `instruction` instead"
    if request.instruction is not None:
        return request.instruction or None
    if request.prompt_name is not None:
        if request.prompt_name not in known:
            raise ApiError(Problem(400, f"unknown prompt_name; this model has: {names}", param="prompt_name"))
        return known[request.prompt_name]
    if request.input_type != "query" or not known:
        return None
    if QUERY_INSTRUCTION not in known:
        raise ApiError(
            Problem(
                400,
                f"this model has no instruction for queries in general; choose one with prompt_name: {names}",
                param="input_type",
            )
        )
    return known[QUERY_INSTRUCTION]


def cut(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """First `dimensions` components of unit vectors (N, D), scaled back to unit length."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimensions]
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.finfo(np.float32).tiny)

"""From a model's name in a request to the answer of one of its replicas, even if a replica dies or fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from rayembed.common import ray_compat
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, NoReplicaError, Problem, overloaded, unavailable
from rayembed.serving.limits import RecentRefusals
from rayembed.serving.messages import (
    DecodeRequest,
    Embeddings,
    EncodeRequest,
    ModelCard,
    ReplicaRequest,
    TokenizeRequest,
)
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.middleware import RequestRecord

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 5
_CARD_LIFETIME_S = 5
RETRIES = 4  # after so many deaths the request itself may be what kills replicas
_FIRST_PAUSE_S = 0.1
_ASKED_AGAIN = 2


async def answers_in_time(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Answers of calls of several processes, without those that die or do not answer in some seconds."""

    async def answer(call: Awaitable[Any]) -> list[Any]:
        try:
            return [await asyncio.wait_for(call, _READY_TIMEOUT_S)]
        except (TimeoutError, RayError) as error:
            logger.warning("a process did not answer: %s", type(error).__name__)
            return []

    return [each for found in await asyncio.gather(*map(answer, calls)) for each in found]


class ServeReplicas:
    """The replicas of a Ray Serve deployment: calls of one as its handle has them, and of all."""

    def __init__(self, handle: Any):
        self._handle = handle

    def __getattr__(self, method: str) -> Any:
        return getattr(self._handle, method)

    async def answers(self, method: str) -> list[Any]:
        """Answers of all running replicas that come in time."""
        try:
            calls = ray_compat.broadcast_calls(self._handle, method)
            return await answers_in_time(await asyncio.wait_for(calls, _READY_TIMEOUT_S))
        except (DeploymentUnavailableError, TimeoutError):  # none runs
            return []


@dataclass(frozen=True)
class Target:
    """What a name in a request stands for.

    Attributes:
        name: served name, which an alias stands for.
        model: served name of the model whose replicas compute it.
        adapter: served name of the adapter; empty for the model itself.
    """

    name: str
    model: str
    adapter: str


class ModelRouter:
    """Knows the served models and asks their replicas."""

    def __init__(self, config: ServeConfig, replicas: Mapping[str, Any], metrics: IngressMetrics):
        """`replicas` maps each model's name to its `ServeReplicas` or its `ReplicaPool`."""
        self._config = config
        self._replicas = replicas
        self._metrics = metrics
        self._targets = {
            name: Target(served.name, model.served_name, served.adapter)
            for model in config.all_models
            for served in model.served
            for name in served.names
        }
        self._refusals = {model.served_name: RecentRefusals(model) for model in config.all_models}
        self._others = {
            model.served_name: min(model.max_replicas - 1, _ASKED_AGAIN) for model in config.all_models
        }
        self._cards: dict[str, tuple[float, ModelCard]] = {}
        self._bare_cards = {
            served.name: ModelCard(id=served.name, created=0, aliases=list(served.aliases))
            for model in config.all_models
            for served in model.served
            if not model.min_replicas
        }

    @property
    def names(self) -> list[str]:
        """Every name that a request may give, the default model's first."""
        return list(self._targets)

    def resolve(self, name: str) -> Target:
        """What is behind a name or an alias; the only model for an empty name.

        Raises:
            ApiError: 404, no model has that name; 400, none is named and there are several.
        """
        known = ", ".join(sorted(self._targets))
        if not name:
            if len(set(self._targets.values())) > 1:
                message = f"name a model; this endpoint serves {known}"
                raise ApiError(Problem(400, message, "model", "missing_field"))
            return next(iter(self._targets.values()))
        if name not in self._targets:
            raise ApiError(
                Problem(404, f"no such model; this endpoint serves {known}", "model", "model_not_found")
            )
        return self._targets[name]

    def with_side(self, name: str) -> tuple[str, str | None]:
        """A model's name, and the input type that NIM's clients append to it, as in `NAME-query`."""
        base, _, side = name.rpartition("-")
        if name not in self._targets and base in self._targets and side in ("query", "passage"):
            return base, side
        return name or self.resolve("").name, None

    async def encode(self, model: str, request: EncodeRequest, record: RequestRecord) -> Embeddings:
        """Vectors of all inputs, from one replica and therefore from one set of weights.

        Raises:
            ApiError: the request was refused, or no replica could answer it.
        """
        target = self.resolve(model)
        self._check_inputs(len(request), target, record)
        request = replace(request, adapter=target.adapter, client=record.client, trace=record.trace)
        with record.reserve(request.estimated_tokens):
            refusals = self._refusals[target.model]
            answer = refusals.find(request)
            if answer is None:
                answer = await self._ask(target.model, "encode", request)
                refusals.note(request, answer)
            vectors: Embeddings = _checked(answer)
            record.tokens, record.truncated, record.digest = vectors.tokens, vectors.truncated, vectors.digest
        return vectors

    async def tokenize(self, model: str, request: TokenizeRequest, record: RequestRecord) -> bytes:
        """The tokens of texts, as JSON.

        Raises:
            ApiError: as `encode`.
        """
        target = self.resolve(model)
        self._check_inputs(len(request), target, record)
        with record.reserve(request.estimated_tokens):
            answer = _checked(await self._ask(target.model, "tokenize", request))
            record.tokens = answer.tokens
        return answer.json

    async def decode(self, model: str, request: DecodeRequest, record: RequestRecord) -> list[str]:
        """The texts of token ids.

        Raises:
            ApiError: as `encode`.
        """
        target = self.resolve(model)
        self._check_inputs(len(request), target, record)
        with record.reserve(request.estimated_tokens):
            answer = _checked(await self._ask(target.model, "decode", request))
            record.tokens = request.estimated_tokens
        return answer

    def _check_inputs(self, count: int, target: Target, record: RequestRecord) -> None:
        record.model, record.inputs = target.name, count
        if count > self._config.max_inputs:
            message = (
                f"the request has {count} inputs and the endpoint takes {self._config.max_inputs}; "
                "send several requests"
            )
            raise ApiError(Problem(400, message, param="input"))

    async def card(self, model: str) -> ModelCard:
        """Description of a model; only its names where it has stopped and was never described.

        Raises:
            ApiError: unknown model, or no replica answers.
        """
        target = self.resolve(model)
        if not await self._refresh(target.model):
            if target.name in self._bare_cards:
                return self._bare_cards[target.name]
            self._note(await self._call(target.model, "describe"))
        return self._cards[target.name][1]

    async def cards(self) -> list[ModelCard]:
        """Description of every model."""
        return [await self.card(served.name) for model in self._config.all_models for served in model.served]

    async def described(self) -> list[ModelCard]:
        """Description of the models that have been described; starts no replica."""
        await asyncio.gather(*(self._refresh(name) for name in self._replicas))
        return self.known_cards

    async def _refresh(self, name: str) -> bool:
        """Renew an old description from running replicas. Returns whether one is known."""
        known = self._cards.get(name)
        if known is None or time.monotonic() - known[0] > _CARD_LIFETIME_S:
            for cards in await self._replicas[name].answers("describe"):
                self._note(cards)
        return name in self._cards

    def _note(self, cards: Sequence[ModelCard]) -> None:
        self._cards |= {card.id: (time.monotonic(), card) for card in cards}

    @property
    def known_cards(self) -> list[ModelCard]:
        """Descriptions that replicas have given so far."""
        return [card for _, card in self._cards.values()]

    async def check_ready(self) -> None:
        """Raise ApiError 503 unless every model that always has replicas has one that answers."""
        for model in self._config.all_models:
            if model.min_replicas:
                try:
                    self._note(
                        await asyncio.wait_for(self._call(model.served_name, "describe"), _READY_TIMEOUT_S)
                    )
                except TimeoutError as error:
                    problem = unavailable(
                        f"no replica of {model.served_name} answered in {_READY_TIMEOUT_S} s"
                    )
                    raise ApiError(problem) from error

    async def from_every_replica(self, method: str) -> list[Any]:
        """Answers of all running replicas of all models that come in time."""
        lists = await asyncio.gather(*(each.answers(method) for each in self._replicas.values()))
        return [answer for answers in lists for answer in answers]

    async def _ask(self, name: str, method: str, request: ReplicaRequest) -> Any:
        """The answer of one replica, or of others where it is full or fails.

        A request that fails twice is given up: it may be what breaks the model.
        """
        failures = 0
        for _ in range(self._others[name]):
            answer = await self._call(name, method, request)
            if not isinstance(answer, Problem) or answer.status not in (429, 500):
                return answer
            failures += answer.status == 500
            if failures == 2 or answer.replica in request.avoid:  # no other one is there
                return answer
            if answer.status == 500:
                self._metrics.retries.labels(name).inc()
            request = replace(request, avoid=request.avoid | {answer.replica})
        return await self._call(name, method, request)

    async def _call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call one replica; embedding twice does no harm, so a replica's death leads to another try."""
        for attempt in range(RETRIES + 1):
            try:
                return await getattr(self._replicas[name], method).remote(*arguments)
            except BackPressureError as error:
                raise ApiError(overloaded(1)) from error
            except (DeploymentUnavailableError, NoReplicaError) as error:
                raise ApiError(unavailable(f"{name} could not be started")) from error
            except (RayActorError, WorkerCrashedError, ReplicaUnavailableError) as error:
                if attempt == RETRIES:
                    raise ApiError(unavailable("the model replica is not available")) from error
                logger.warning("a replica of %s was lost, request sent again", name)
                self._metrics.retries.labels(name).inc()
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _checked(answer: Any) -> Any:
    """The same, unless it says why there is none."""
    if isinstance(answer, Problem):
        raise ApiError(answer)
    return answer

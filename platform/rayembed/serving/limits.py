"""Admission: how many tokens a replica may hold that are accepted and not yet answered."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rayembed.serving.config import ModelSettings
from rayembed.serving.errors import ApiError, Problem, overloaded
from rayembed.serving.messages import EncodeRequest, Priority

_LONGEST_WAIT_S = 60
_REFUSAL_LIFETIME_S = 0.05
_LARGEST_SHARE = 0.75  # of the limit, that one request counts as
_BULK_SHARE = 0.75  # of the limit: a full backlog of bulk work leaves room for online requests


class TokenLimit:
    """Counts unanswered tokens and refuses what does not fit, one rule for single and batch requests."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.queued = 0

    def limit(self, priority: Priority = "online") -> int:
        """Most tokens that may be queued when a request of this priority is admitted."""
        return math.ceil(self.max_tokens * _BULK_SHARE) if priority == "bulk" else self.max_tokens

    @contextlib.contextmanager
    def admit(self, tokens: int, priority: Priority, tokens_per_second: float) -> Iterator["Hold"]:
        """Count a request for the duration of the block, at first by an estimate of its tokens.

        Raises:
            ApiError: 429, it does not fit now.
        """
        hold = Hold(self, priority, tokens_per_second)
        hold.change(tokens)
        try:
            yield hold
        finally:
            self.queued -= hold.tokens

    def retry_after_s(self, tokens: int, tokens_per_second: float, priority: Priority = "online") -> int:
        """Whole seconds, from 1 to 60, until `tokens` fit when the queue drains at the measured speed."""
        if tokens_per_second <= 0:
            return 1
        missing = min(self.queued + tokens - self.limit(priority), self.queued)
        return min(max(math.ceil(missing / tokens_per_second), 1), _LONGEST_WAIT_S)


class Hold:
    """The part of the limit that one request takes.

    It counts as three quarters of the limit at most, because no client splits a request that was refused. So
    one above the limit does not need an empty queue, which steady work may never leave, and others find room
    while it is computed.
    """

    def __init__(self, limit: TokenLimit, priority: Priority, tokens_per_second: float):
        self.tokens = 0
        self._limit = limit
        self._priority = priority
        self._tokens_per_second = tokens_per_second

    def change(self, tokens: int) -> None:
        """Count `tokens` in place of what was counted; ApiError 429 where they do not fit."""
        limit = self._limit
        others = limit.queued - self.tokens
        most = limit.limit(self._priority)
        counted = min(tokens, math.ceil(most * _LARGEST_SHARE))
        if counted and others + counted > most:
            raise ApiError(overloaded(limit.retry_after_s(counted, self._tokens_per_second, self._priority)))
        limit.queued += counted - self.tokens
        self.tokens = counted


@dataclass(frozen=True)
class _Refusal:
    problem: Problem
    characters: int
    expires: float


class RecentRefusals:
    """Answers for a model whose one replica has just refused a request of the same length or a shorter one.

    Asking costs processor time that the model then lacks: refused requests, which outnumber the others under
    overload, would slow those down. A replica that could answer from a cache, and one of several replicas,
    always has to be asked.
    """

    def __init__(self, model: ModelSettings, clock: Callable[[], float] = time.monotonic):
        self._applies = model.max_replicas == 1 and model.cache == "off"
        self._clock = clock
        self._last: dict[str, _Refusal] = {}

    def find(self, request: EncodeRequest) -> Problem | None:
        """The refusal that a request would get; None when its replica has to be asked."""
        last = self._last.get(request.priority)
        if last is None or self._clock() > last.expires or request.characters < last.characters:
            return None
        return last.problem

    def note(self, request: EncodeRequest, answer: object) -> None:
        """Remember what the replica said if it was that its queue is full."""
        if self._applies and isinstance(answer, Problem) and answer.status == 429:
            expires = self._clock() + _REFUSAL_LIFETIME_S
            self._last[request.priority] = _Refusal(answer, request.characters, expires)

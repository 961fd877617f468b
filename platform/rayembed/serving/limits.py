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
_BULK_SHARE = 0.75  # of the limit: a full backlog of bulk work leaves room for online requests


class TokenLimit:
    """Counts queued tokens and refuses what does not fit, one rule for single and batch requests."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.queued = 0

    def limit(self, priority: Priority = "online") -> int:
        """Most tokens that may be queued when a request of this priority is admitted."""
        return int(self.max_tokens * _BULK_SHARE) if priority == "bulk" else self.max_tokens

    def has_room(self, tokens: int, priority: Priority = "online") -> bool:
        """Whether a request of `tokens` tokens fits now."""
        return self.queued + tokens <= self.limit(priority)

    def check_fits(self, tokens: int, priority: Priority, tokens_per_second: float) -> None:
        """Raise ApiError unless a request of `tokens` tokens can be admitted now: 413 when it never can."""
        limit = self.limit(priority)
        if tokens > limit:
            raise ApiError(
                Problem(
                    413,
                    f"the request has {tokens} tokens and the endpoint accepts {limit} at once; "
                    "spread the inputs over several requests",
                    param="input",
                )
            )
        self.check_room(tokens, priority, tokens_per_second)

    def check_room(self, tokens: int, priority: Priority, tokens_per_second: float) -> None:
        """Raise ApiError 429 unless `tokens` tokens fit now."""
        if not self.has_room(tokens, priority):
            raise ApiError(overloaded(self.retry_after_s(tokens, tokens_per_second, priority)))

    @contextlib.contextmanager
    def hold(self, tokens: int) -> Iterator[None]:
        """Count `tokens` as queued for the duration of the block."""
        self.queued += tokens
        try:
            yield
        finally:
            self.queued -= tokens

    def retry_after_s(self, tokens: int, tokens_per_second: float, priority: Priority = "online") -> int:
        """Whole seconds, from 1 to 60, until `tokens` fit when the queue drains at the measured speed."""
        if tokens_per_second <= 0:
            return 1
        missing = self.queued + tokens - self.limit(priority)
        return min(max(math.ceil(missing / tokens_per_second), 1), _LONGEST_WAIT_S)


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
        if last is None or self._clock() > last.expires or _characters(request) < last.characters:
            return None
        return last.problem

    def note(self, request: EncodeRequest, answer: object) -> None:
        """Remember what the replica said if it was that its queue is full."""
        if self._applies and isinstance(answer, Problem) and answer.status == 429:
            expires = self._clock() + _REFUSAL_LIFETIME_S
            self._last[request.priority] = _Refusal(answer, _characters(request), expires)


def _characters(request: EncodeRequest) -> int:
    """Length of a request as far as it is known before tokenising; a token counts as one character."""
    return sum(len(item) for group in request.groups for item in (*group.texts, *group.token_ids))

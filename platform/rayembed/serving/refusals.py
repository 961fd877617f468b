"""Refusals that hold for a moment, so that under overload not every request has to ask the replica."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rayembed.serving.config import ModelSettings
from rayembed.serving.errors import Problem
from rayembed.serving.messages import EncodeRequest

_LIFETIME_S = 0.05


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
            expires = self._clock() + _LIFETIME_S
            self._last[request.priority] = _Refusal(answer, _characters(request), expires)


def _characters(request: EncodeRequest) -> int:
    """Length of a request as far as it is known before tokenising; a token counts as one character."""
    return sum(len(item) for group in request.groups for item in (*group.texts, *group.token_ids))

"""Admission: how many tokens a replica may hold that are accepted and not yet answered."""

import contextlib
import math
from collections.abc import Iterator

_LONGEST_WAIT_S = 60


class TokenLimit:
    """Counts queued tokens and refuses what does not fit, one rule for single and batch requests."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.queued = 0

    def has_room(self, tokens: int) -> bool:
        """Whether a request of `tokens` tokens fits now."""
        return self.queued + tokens <= self.max_tokens

    @contextlib.contextmanager
    def hold(self, tokens: int) -> Iterator[None]:
        """Count `tokens` as queued for the duration of the block."""
        self.queued += tokens
        try:
            yield
        finally:
            self.queued -= tokens

    def retry_after_s(self, tokens_per_second: float) -> int:
        """Whole seconds, from 1 to 60, in which the present queue is worked off at the measured speed."""
        if tokens_per_second <= 0:
            return 1
        return min(max(math.ceil(self.queued / tokens_per_second), 1), _LONGEST_WAIT_S)

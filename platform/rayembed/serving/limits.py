"""Admission: how many tokens a replica may hold that are accepted and not yet answered."""

import contextlib
import math
from collections.abc import Iterator

from rayembed.serving.messages import Priority

_LONGEST_WAIT_S = 60
_BULK_SHARE = 0.75  # of the limit, so that a full bulk backlog leaves room for online requests


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

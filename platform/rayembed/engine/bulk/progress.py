"""Progress of a job in its log."""

import logging
import time

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Logs rows done, tokens per second and the time left, at most every few seconds.

    Args:
        rows: rows of the input.
        done: rows that an earlier run has done.
    """

    def __init__(self, rows: int, done: int):
        self._rows, self._done = rows, done
        self._new_rows = self._tokens = 0
        self._start = self._last_line = time.monotonic()

    def add(self, rows: int, tokens: int) -> None:
        """Count a finished shard."""
        self._done += rows
        self._new_rows += rows
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and self._done < self._rows:
            return
        self._last_line = now
        elapsed = max(now - self._start, 1e-9)
        logger.info(
            "%d/%d rows (%.0f %%), %.0f rows/s, %.0f tokens/s, about %s left",
            self._done,
            self._rows,
            100 * self._done / self._rows,
            self._new_rows / elapsed,
            self._tokens / elapsed,
            _duration((self._rows - self._done) * elapsed / max(self._new_rows, 1)),
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

"""How long things take: spans of time as text, and the progress of long work in the log."""

import logging
import time

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """A span of time as a person reads it: 42 s, 3 min 05 s, 2 h 40 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Logs how much is done, how fast, and about how long the rest takes; at most every few seconds.

    Args:
        logger: where the lines go.
        title: what is done, the first words of each line.
        total: how much there is; None where nobody knows.
        unit: of `total`, in the plural.
        done: what an earlier run has done, which counts for the total and not for the rate.
    """

    def __init__(
        self,
        logger: logging.Logger,
        title: str,
        total: int | None = None,
        *,
        unit: str = "items",
        done: int = 0,
    ):
        self._logger, self._title, self._total, self._unit = logger, title, total, unit
        self._before, self.done = done, done
        self._extras: dict[str, int] = {}
        self._start = self._shown = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._start

    def add(self, amount: int = 1, **extras: int) -> None:
        """Count `amount` as done; `extras` such as `tokens=512` are summed up and shown as rates."""
        self.done += amount
        for name, value in extras.items():
            self._extras[name] = self._extras.get(name, 0) + value
        now = time.monotonic()
        if now - self._shown >= SECONDS_BETWEEN_LINES or self.done == self._total:
            self._shown = now
            self._logger.info("%s: %s", self._title, self._line())

    def _line(self) -> str:
        new, elapsed = self.done - self._before, max(self.seconds, 1e-9)
        rates = {self._unit: new} | self._extras
        speed = ", ".join(f"{count / elapsed:,.1f} {name}/s" for name, count in rates.items())
        if self._total is None:
            return f"{self.done:,} {self._unit}, {speed}"
        share = f"{self.done:,} of {self._total:,} {self._unit} ({self.done / self._total:.0%}), {speed}"
        if self.done == self._total:
            return f"{share}, in {duration(elapsed)}"
        return f"{share}, about {duration((self._total - self.done) * elapsed / max(new, 1))} left"

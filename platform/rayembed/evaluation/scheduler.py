"""Units of work on a pool of Ray actors: dead actors replaced, progress with time left."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rayembed.common.errors import UserError
from rayembed.common.progress import duration
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.units import Unit, WorkQueue
from rayembed.evaluation.worker import Outcome

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_HEARTBEAT_SECONDS = 30.0


@dataclass
class _Slot:
    """A place in the pool.

    Attributes:
        actor: fills it.
        holds: the candidate whose model that actor has loaded.
        failed_starts: actors that died here in a row before they were up.
    """

    actor: Any
    holds: Candidate | None = None
    failed_starts: int = 0


class Scheduler:
    """Runs units on actors.

    Args:
        units: the work.
        start_actor: starts an actor with the methods of `evaluation.worker.Worker`.
        actors: size of the pool. An actor that the cluster cannot place yet is not waited for.
        progress: told of each unit that starts and asked for the time that the running ones take.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        start_actor: Callable[[], Any],
        actors: int,
        progress: "Progress | None" = None,
    ):
        self._queue = WorkQueue(units)
        self._progress = progress or Progress(units)
        self._start_actor = start_actor
        self._slots = [_Slot(start_actor()) for _ in range(min(actors, len(units)))]
        self._idle: list[_Slot] = []
        self._running: dict[Any, tuple[_Slot, Unit | None]] = {}
        self._attempts: Counter[Unit] = Counter()
        self._failures: dict[Unit, Exception] = {}

    def run(self) -> Iterator[tuple[Unit, Outcome]]:
        """Yield every unit with its outcome as it is done.

        Raises:
            UserError: a checkpoint or rows cannot be read; nothing else is started.
            RuntimeError: units failed although all others were done; the message names them.
        """
        try:
            for slot in self._slots:
                self._running[slot.actor.ready.remote()] = slot, None
            while len(self._queue) or any(unit for _, unit in self._running.values()):
                yield from self._next_done()
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)
        if self._failures:
            reasons = [f"{unit}: {str(error).splitlines()[-1]}" for unit, error in self._failures.items()]
            raise RuntimeError(f"{len(reasons)} tasks failed, all others are stored: {'; '.join(reasons)}")

    def _next_done(self) -> Iterator[tuple[Unit, Outcome]]:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=_HEARTBEAT_SECONDS)
        if not done:
            self._progress.heartbeat([unit for _, unit in self._running.values() if unit])
            return
        slot, unit = self._running.pop(done[0])
        try:
            outcome = ray.get(done[0])
        except (RayActorError, ObjectLostError) as error:
            # A lost node takes along results that were not read yet.
            self._replace(slot, unit, error)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            assert unit is not None, "ready() has nothing that can fail"
            logger.warning("%s failed: %s", unit, error)
            self._fail(unit, error)
            self._idle.append(slot)
        else:
            if unit is None:
                slot.failed_starts = 0
            else:
                self._queue.done(unit)
                yield unit, outcome
            self._idle.append(slot)
        self._assign()

    def _assign(self) -> None:
        """Give every idle slot its next unit; a slot stays idle while all units wait for others."""
        for slot in tuple(self._idle):
            unit = self._queue.take(slot.holds)
            if unit is None:
                return
            self._idle.remove(slot)
            if unit.candidate.encodes:
                slot.holds = unit.candidate
            self._progress.started(unit)
            self._running[slot.actor.run.remote(unit)] = slot, unit

    def _replace(self, slot: _Slot, unit: Unit | None, error: Exception) -> None:
        """Put another actor in a dead one's place; its unit goes back unless its attempts are used up.

        The unit does not wait for that actor, which may find no free CPU: an idle one takes it.
        """
        if unit is None:
            # Counted by slot: a node that is lost while many actors start on it is one failure of each.
            slot.failed_starts += 1
            if slot.failed_starts >= MAX_ATTEMPTS:
                raise RuntimeError(f"evaluation actors die as they start: {error}") from error
        else:
            self._attempts[unit] += 1
            if self._attempts[unit] >= MAX_ATTEMPTS:
                logger.warning("%s: its actor died %d times, given up", unit, MAX_ATTEMPTS)
                self._fail(unit, error)
            else:
                logger.warning("the actor of %s died, it is run again", unit)
                self._queue.put_back(unit)
        slot.actor, slot.holds = self._start_actor(), None
        self._running[slot.actor.ready.remote()] = slot, None

    def _fail(self, unit: Unit, error: Exception) -> None:
        self._failures[unit] = error
        for dropped in self._queue.give_up(unit):
            self._progress.dropped(dropped)


class Progress:
    """Logs what is done, at which measured rate, and about how long the rest will take."""

    def __init__(self, units: Sequence[Unit], actors: int = 1):
        self._total, self._left = len(units), sum(unit.cost for unit in units)
        self._done = 0
        self._done_cost = self._busy_seconds = 0.0
        self._actors = max(1, actors)
        self._started: dict[str, float] = {}

    def started(self, unit: Unit) -> None:
        """Note the start of `unit`."""
        self._started[unit.key] = time.monotonic()

    def dropped(self, unit: Unit) -> None:
        """Count `unit` out."""
        self._left -= unit.cost
        self._total -= 1

    def finished(self, unit: Unit, outcome: Outcome) -> None:
        """Count `unit` as done."""
        self._done += 1
        self._left -= unit.cost
        self._done_cost += unit.cost
        self._busy_seconds += outcome.seconds
        score = "" if outcome.result is None else f" {outcome.result.get_score():.3f}"
        rate = f", {outcome.tokens / outcome.seconds:.0f} tokens/s" if outcome.tokens else ""
        logger.info(
            "%d/%d %s:%s (%.1f s%s); about %s left",
            self._done,
            self._total,
            unit,
            score,
            outcome.seconds,
            rate,
            duration(self._expected(max(0.0, self._left)) / self._actors),
        )

    def heartbeat(self, running: Sequence[Unit]) -> None:
        """Say what runs and how long each of it will still take."""
        lines = [f"{unit}{self._time_left(unit)}" for unit in running]
        logger.info("running: %s", ", ".join(lines) or "nothing yet, actors start or wait for free CPUs")

    def _time_left(self, unit: Unit) -> str:
        if not self._done_cost:
            return ""
        elapsed = time.monotonic() - self._started[unit.key]
        return f" (about {duration(max(0.0, self._expected(unit.cost) - elapsed))} left)"

    def _expected(self, cost: float) -> float:
        """Seconds of one actor for `cost`, at the rate measured so far."""
        return cost * self._busy_seconds / max(1.0, self._done_cost)

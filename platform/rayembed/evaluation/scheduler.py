"""Units of work on a pool of Ray actors: longest first, dead actors replaced, progress with time left."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from mteb.results import TaskResult
from ray.exceptions import RayActorError, RayTaskError

from rayembed.errors import UserError
from rayembed.evaluation.store import Candidate

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True)
class Unit:
    """One candidate on one task; `cost` is in any unit that grows with the run time."""

    candidate: Candidate
    task: str
    cost: int

    def __str__(self) -> str:
        return f"{self.candidate.label} {self.task}"


@dataclass
class _Slot:
    """A place in the pool: the actor that fills it and the candidate whose model that actor holds."""

    actor: Any
    holds: Candidate | None = None


class Scheduler:
    """Runs units on actors.

    Args:
        units: the work.
        start_actor: starts an actor with the methods of `evaluation.worker.Worker`.
        actors: size of the pool. An actor that the cluster cannot place yet is not waited for.
    """

    def __init__(self, units: Sequence[Unit], start_actor: Callable[[], Any], actors: int):
        self._pending = list(units)
        self._start_actor = start_actor
        self._slots = [_Slot(start_actor()) for _ in range(min(actors, len(units)))]
        self._waiting: dict[Any, tuple[_Slot, Unit | None]] = {}
        self._attempts: Counter[Unit | None] = Counter()
        self._failures: dict[Unit, Exception] = {}

    def run(self) -> Iterator[tuple[Unit, TaskResult]]:
        """Yield every unit with its result as it is done.

        Raises:
            UserError: a checkpoint or a source cannot be read; nothing else is started.
            RuntimeError: units failed although all others were done; the message names them.
        """
        try:
            for slot in self._slots:
                self._waiting[slot.actor.ready.remote()] = slot, None
            while self._pending or any(unit for _, unit in self._waiting.values()):
                yield from self._next_done()
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)
        if self._failures:
            reasons = [f"{unit}: {str(error).splitlines()[-1]}" for unit, error in self._failures.items()]
            raise RuntimeError(f"{len(reasons)} tasks failed, all others are stored: {'; '.join(reasons)}")

    def _next_done(self) -> Iterator[tuple[Unit, TaskResult]]:
        done, _ = ray.wait(list(self._waiting), num_returns=1, timeout=_HEARTBEAT_SECONDS)
        if not done:
            busy = [str(unit) for _, unit in self._waiting.values() if unit]
            logger.info("running: %s", ", ".join(busy) or "nothing yet, actors start or wait for free CPUs")
            return
        slot, unit = self._waiting.pop(done[0])
        try:
            result = ray.get(done[0])
        except RayActorError as error:
            self._replace(slot, unit, error)
            return
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            assert unit is not None, "ready() has nothing that can fail"
            logger.warning("%s failed: %s", unit, error)
            self._failures[unit] = error
        else:
            if unit is not None:
                yield unit, result
        self._assign(slot)

    def _assign(self, slot: _Slot) -> None:
        """Give the slot its next unit: the longest one for the model it holds, else the longest of all."""
        if not self._pending:
            return
        unit = max(self._pending, key=lambda unit: (unit.candidate == slot.holds, unit.cost))
        self._pending.remove(unit)
        if unit.candidate.checkpoint is not None:
            slot.holds = unit.candidate
        self._waiting[slot.actor.evaluate.remote(unit.candidate, unit.task)] = slot, unit

    def _replace(self, slot: _Slot, unit: Unit | None, error: RayActorError) -> None:
        """Put another actor in a dead one's place; its unit goes back unless its attempts are used up."""
        self._attempts[unit] += 1
        exhausted = self._attempts[unit] >= MAX_ATTEMPTS
        if unit is None and exhausted:
            raise RuntimeError(f"evaluation actors die as they start: {error}")
        if unit is not None and exhausted:
            logger.warning("%s: its actor died %d times, given up", unit, MAX_ATTEMPTS)
            self._failures[unit] = error
        elif unit is not None:
            logger.warning("the actor of %s died, the task is run again", unit)
            self._pending.append(unit)
        slot.actor, slot.holds = self._start_actor(), None
        self._waiting[slot.actor.ready.remote()] = slot, None


class Progress:
    """Logs each finished unit, how many are left and about how long they will take."""

    def __init__(self, units: Sequence[Unit]):
        self._total, self._total_cost = len(units), sum(unit.cost for unit in units)
        self._done = self._done_cost = 0
        self._start = time.monotonic()

    def finished(self, unit: Unit, result: TaskResult) -> None:
        """Count `unit` as done."""
        self._done += 1
        self._done_cost += unit.cost
        elapsed = time.monotonic() - self._start
        left = elapsed * (self._total_cost - self._done_cost) / max(1, self._done_cost)
        logger.info(
            "%d/%d %s: %.3f (%.1f s); about %.0f s left",
            self._done,
            self._total,
            unit,
            result.get_score(),
            result.evaluation_time or 0.0,
            left,
        )

"""Units of work of an evaluation and the order in which they are done.

A small task is one unit. A large one becomes shards, which any actor encodes, and one unit that scores it
when all of its shards are there.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayembed.evaluation.catalogue import TaskReference
from rayembed.evaluation.sizes import Side, TextSet
from rayembed.evaluation.store import Candidate

# About two minutes of a 7B model on one current accelerator; a killed actor repeats at most this much.
SHARD_TOKENS = 2_000_000


@dataclass(frozen=True)
class Shard:
    """Part `index` of `of` of a text set, in the order of its rows."""

    subset: str
    split: str
    side: Side
    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.subset}/{self.split} {self.side} {self.index + 1}/{self.of}"


@dataclass(frozen=True)
class Unit:
    """One piece of work of one candidate on one task.

    Attributes:
        candidate: the model.
        reference: the task.
        cost: estimated tokens to encode.
        shard: what to encode; None scores the task.
        shards: the stored shards that it reads; a scoring unit without any encodes everything itself.
        needs: keys of the units that have to be done before.
    """

    candidate: Candidate
    reference: TaskReference
    cost: float
    shard: Shard | None = None
    shards: tuple[Shard, ...] = ()
    needs: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Names the unit within a run."""
        return f"{self.candidate.label} {self.reference.name}{f' {self.shard}' if self.shard else ''}"

    @property
    def group(self) -> tuple[str, str]:
        """Candidate and task."""
        return self.candidate.label, self.reference.name

    def __str__(self) -> str:
        return self.key


def task_units(
    candidate: Candidate,
    reference: TaskReference,
    sets: Sequence[TextSet],
    *,
    max_length: int,
    shard_tokens: float = SHARD_TOKENS,
) -> list[Unit]:
    """Units of one candidate on one task.

    Args:
        candidate: the model; BM25 (without a checkpoint) is never divided.
        reference: the task.
        sets: what the task has to encode.
        max_length: most tokens of a text.
        shard_tokens: text sets above this are divided into shards of about this size.
    """
    large = [texts for texts in sets if texts.divisible and texts.tokens(max_length) > shard_tokens]
    total = sum(texts.tokens(max_length) for texts in sets)
    if not candidate.encodes or not large:
        return [Unit(candidate, reference, total if candidate.encodes else 1.0)]
    # A shard of documents is searched with the queries, so these come first; the parts of a task that are
    # small become one shard each, so that the scoring finds all of its searches done.
    searched = any(texts.side == "document" for texts in large)
    divided = [texts for texts in sets if texts in large or searched]
    units: list[Unit] = []
    queries: dict[tuple[str, str], list[Unit]] = {}
    for texts in sorted(divided, key=lambda texts: texts.side == "document"):
        tokens = texts.tokens(max_length)
        count = max(1, math.ceil(tokens / shard_tokens))
        place = texts.subset, texts.split
        asked = queries.get(place, []) if texts.side == "document" else []
        made = [
            Unit(
                candidate,
                reference,
                tokens / count,
                Shard(texts.subset, texts.split, texts.side, index, count),
                tuple(unit.shard for unit in asked if unit.shard),
                frozenset(unit.key for unit in asked),
            )
            for index in range(count)
        ]
        if texts.side == "query":
            queries[place] = made
        units += made
    rest = total - sum(texts.tokens(max_length) for texts in divided)
    shards = tuple(unit.shard for unit in units if unit.shard is not None)
    needs = frozenset(unit.key for unit in units)
    return [*units, Unit(candidate, reference, rest, None, shards, needs)]


class WorkQueue:
    """Units that wait, those of the largest task first: small tasks fill the gaps at the end.

    Within a task, units that others wait for go first, then the longest.
    """

    def __init__(self, units: Iterable[Unit]):
        self._waiting = {unit.key: unit for unit in units}
        self._work: Counter[tuple[str, str]] = Counter()
        self._gates: set[str] = set()
        for unit in self._waiting.values():
            self._work[unit.group] += unit.cost  # type: ignore[assignment]
            if unit.shard is not None:
                self._gates |= unit.needs
        self._undone = set(self._waiting)

    def __len__(self) -> int:
        """Units that have not been taken."""
        return len(self._waiting)

    def take(self, holds: Candidate | None = None) -> Unit | None:
        """The next unit whose needs are met, of the candidate that the taker holds if possible."""
        ready = [unit for unit in self._waiting.values() if self._undone.isdisjoint(unit.needs)]
        if not ready:
            return None
        unit = max(
            ready,
            key=lambda unit: (
                unit.candidate == holds,
                unit.key in self._gates,
                self._work[unit.group],
                unit.cost,
            ),
        )
        del self._waiting[unit.key]
        return unit

    def done(self, unit: Unit) -> None:
        """Let the units that need `unit` go ahead."""
        self._undone.discard(unit.key)

    def put_back(self, unit: Unit) -> None:
        """Queue a taken unit again."""
        self._waiting[unit.key] = unit

    def give_up(self, unit: Unit) -> list[Unit]:
        """Drop the waiting units of the task of a unit that failed, and return them."""
        dropped = [other for other in self._waiting.values() if other.group == unit.group]
        for other in dropped:
            del self._waiting[other.key]
        return dropped

"""Units of work of an evaluation and the order in which they are done.

A small task is one unit. A large one becomes shards, which any actor encodes, and one unit that scores it
when all of its shards are there.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskClusteringLegacy,
    AbsTaskRetrieval,
)

from rayembed.common.ray_work import Queue
from rayembed.evaluation.catalogue import TaskReference
from rayembed.evaluation.results import Candidate

Side = Literal["query", "document", "text"]

CHARACTERS_PER_TOKEN = 4.4
# A registry task without published sizes is taken for a middling one.
_UNKNOWN_TEXTS, _UNKNOWN_CHARACTERS = 10_000, 2_000_000


@dataclass(frozen=True)
class TextSet:
    """Texts of one side of one split.

    Attributes:
        subset: mteb subset, "default" where a task has one.
        split: for example test.
        side: query or document of a search task, text elsewhere.
        texts: how many.
        characters: in all.
        divisible: whether shards of it can be encoded ahead of the scoring.
    """

    subset: str
    split: str
    side: Side
    texts: int
    characters: int
    divisible: bool

    def tokens(self, max_length: int) -> float:
        """Estimated tokens with texts cut to `max_length`."""
        return min(self.characters / CHARACTERS_PER_TOKEN, self.texts * max_length)


def text_sets(task: AbsTask) -> list[TextSet]:
    """The text sets of a task: counted where its rows are loaded, else from mteb's descriptive statistics."""
    return list(_counted(task) if task.data_loaded else _published(task))


def _counted(task: AbsTask) -> Iterator[TextSet]:
    dataset: Any = task.dataset
    for split in task.eval_splits:
        rows = dataset[split] if split in dataset else dataset["default"][split]
        if isinstance(task, AbsTaskRetrieval):
            yield _count(rows["queries"]["text"], split, "query", divisible=True)
            yield _count(rows["corpus"]["text"], split, "document", divisible=True)
        else:
            columns = [column for column in rows.column_names if column not in ("label", "labels")]
            texts = [text for column in columns for text in _strings(rows[column])]
            yield _count(texts, split, "text", _divisible(task))


def _count(texts: Any, split: str, side: Side, divisible: bool) -> TextSet:
    return TextSet("default", split, side, len(texts), sum(map(len, texts)), divisible)


def _strings(column: Any) -> Iterator[str]:
    for value in column:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _strings(value)


def _published(task: AbsTask) -> Iterator[TextSet]:
    statistics: dict[str, Any] = task.metadata.descriptive_stats or {}
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            of_split = statistics.get(split) or {}
            found = (of_split.get("hf_subset_descriptive_stats") or {}).get(subset) or of_split
            if isinstance(task, AbsTaskRetrieval):
                queries = _characters(found, "queries_text_statistics")
                documents = _characters(found, "documents_text_statistics")
                count = found.get("num_queries") or _UNKNOWN_TEXTS
                total = found.get("num_documents") or found.get("num_samples") or _UNKNOWN_TEXTS
                yield TextSet(subset, split, "query", count, queries or count * 50, True)
                yield TextSet(subset, split, "document", total, documents or _UNKNOWN_CHARACTERS, True)
                continue
            samples = found.get("num_samples") or _UNKNOWN_TEXTS
            characters = sum(_characters(found, key) for key in found if key.endswith("_statistics"))
            share = _embedded_share(task, samples)
            yield TextSet(
                subset,
                split,
                "text",
                round(samples * share),
                round((characters or _UNKNOWN_CHARACTERS) * share),
                _divisible(task),
            )


def _characters(statistics: dict[str, Any], key: str) -> int:
    found = statistics.get(key)
    return int(found.get("total_text_length") or 0) if isinstance(found, dict) else 0


def _divisible(task: AbsTask) -> bool:
    """Whether all texts are encoded; the newer clustering protocol draws a part of them."""
    return isinstance(task, AbsTaskClassification | AbsTaskClusteringLegacy)


def _embedded_share(task: AbsTask, samples: int) -> float:
    if not isinstance(task, AbsTaskClustering) or not samples:
        return 1.0
    if task.max_document_to_embed is not None:
        return min(1.0, task.max_document_to_embed / samples)
    return task.max_fraction_of_documents_to_embed or 1.0


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
    units = _shard_units(candidate, reference, divided, max_length, shard_tokens)
    rest = total - sum(texts.tokens(max_length) for texts in divided)
    shards = tuple(unit.shard for unit in units if unit.shard is not None)
    needs = frozenset(unit.key for unit in units)
    return [*units, Unit(candidate, reference, rest, None, shards, needs)]


def _shard_units(
    candidate: Candidate,
    reference: TaskReference,
    divided: Sequence[TextSet],
    max_length: int,
    shard_tokens: float,
) -> list[Unit]:
    """Units that encode the shards of text sets; those of documents wait for their queries."""
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
    return units


class UnitQueue(Queue[Unit]):
    """Units of the largest task first: small tasks fill the gaps at the end.

    Within a task, units that others wait for go first, then the longest. MSMARCO in two shards and STS12:

        query 1/1       first, the documents wait for it; other actors start with STS12
        document 1/2    when query 1/1 is done, on an actor that holds the same model if there is one
        document 2/2
        MSMARCO         scores, when both documents are done

    Attributes:
        undone: key -> unit of all that are neither done nor given up.
    """

    def __init__(self, units: Iterable[Unit]):
        self._waiting = {unit.key: unit for unit in units}
        self._work: Counter[tuple[str, str]] = Counter()
        self._gates: set[str] = set()
        for unit in self._waiting.values():
            self._work[unit.group] += unit.cost  # type: ignore[assignment]
            if unit.shard is not None:
                self._gates |= unit.needs
        self.undone = dict(self._waiting)

    def __len__(self) -> int:
        """Units that have not been taken."""
        return len(self._waiting)

    def take(self, before: Sequence[Unit] = ()) -> Unit | None:
        """The next unit whose needs are met, of the model that an actor holds after the units `before`."""
        ready = [unit for unit in self._waiting.values() if self.undone.keys().isdisjoint(unit.needs)]
        if not ready:
            return None
        holds = next((unit.candidate for unit in reversed(before) if unit.candidate.encodes), None)
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
        self.undone.pop(unit.key, None)

    def put_back(self, unit: Unit) -> None:
        """Queue a taken unit again."""
        self._waiting[unit.key] = unit

    def give_up(self, unit: Unit) -> None:
        """Drop the waiting units of the task of a unit that failed."""
        lost = [other.key for other in self._waiting.values() if other.group == unit.group]
        for key in (unit.key, *lost):
            self._waiting.pop(key, None)
            self.undone.pop(key, None)

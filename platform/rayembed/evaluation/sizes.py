"""How much a task has to encode, known before its rows are read: mteb ships the sizes of its tasks.

Sizes are estimated tokens, since real ones depend on the model's tokenizer; the run measures how fast they
go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskClusteringLegacy,
    AbsTaskRetrieval,
)

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

"""Splits of mteb tasks, as mteb itself loads them: from the hub, or from the cache of an earlier download.

`path` is the name of the task. Retrieval and reranking become pairs; classification and clustering labels;
STS scores. mteb holds a split in memory, so a task is one part.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError, ResourceError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row, by_suffix
from rayembed.records.locations import StoredFile

COLUMNS = {"sentences": "text", "labels": "label"}  # of clustering tasks -> of the layout


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """The split as one part."""
    return [Part("mteb", file, extra={"split": source.split}) for file in files]


def read(part: Part) -> Iterator[Row]:
    """Rows of the split in all subsets (languages) of the task.

    Raises:
        DataError: mteb has no such task, or the task no such split.
        ResourceError: the task's data cannot be loaded.
    """
    task, split = load_task(part.file.name), part.extra["split"]
    number = 0
    for subset in _subsets(task.dataset, split, part.file.name):
        for record in _judged(subset) if "relevant_docs" in subset else _records(subset):
            number += 1
            yield Row(number, record)


def load_task(name: str) -> Any:
    """An mteb task with its data."""
    import mteb

    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise DataError(f"mteb has no task {name!r}; {error.args[0]}") from error
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises without a network
        raise ResourceError(
            f"the data of mteb task {name} cannot be loaded ({error}); connect to the hub once, or fill its "
            "cache"
        ) from error
    return task


def _subsets(dataset: Mapping[str, Any], split: str, name: str) -> list[Mapping[str, Any]]:
    """The split of each subset; a task without subsets has one."""
    subsets = [part for part in dataset.values() if isinstance(part, Mapping)] or [dataset]
    found = [subset[split] for subset in subsets if split in subset]
    if not found:
        splits = sorted({known for subset in subsets for known in subset})
        raise DataError(f"mteb task {name} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    return [part if isinstance(part, Mapping) else {"rows": part} for part in found]


def _judged(subset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pairs of a retrieval split; the corpus is looked up by position, its texts stay where mteb has them."""
    corpus, queries = subset["corpus"], subset["queries"]
    position_of = {identifier: position for position, identifier in enumerate(corpus["id"])}
    text_of = dict(zip(queries["id"], queries["text"], strict=True))
    for query, grades in subset["relevant_docs"].items():
        documents = {
            document: corpus[position_of[document]] for document in grades if document in position_of
        }
        yield {
            "query": text_of.get(query),
            "positives": [documents[document] for document in documents if grades[document] > 0],
            "negatives": [documents[document] for document in documents if grades[document] <= 0],
        }


def _records(subset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in subset["rows"]:
        yield {COLUMNS.get(column, column): value for column, value in row.items()}


READER = Reader("mteb", (), by_suffix, parts, read)

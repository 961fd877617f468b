"""Splits of mteb tasks, as mteb itself loads them: from the hub, or from the cache of an earlier download.

`path` is the name of the task. Retrieval and reranking become pairs; classification and clustering labels;
STS scores. mteb holds a split in memory, so a task is one part.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import fetch, resolve
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row
from rayembed.records.locations import StoredFile


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """The split as one part."""
    return [Part("mteb", file, extra={"split": source.split or ""}) for file in files]


def read(part: Part) -> Iterator[Row]:
    """Rows of the split in all subsets (languages) of the task.

    Raises:
        DataError: mteb has no such task, or the task no such split.
        ResourceError: the task's data cannot be loaded.
    """
    task, split = load_task(part.file.name), part.extra["split"]
    number = 0
    for subset in _subsets(task.dataset, split, part.file.name):
        for record in _judged(subset) if "relevant_docs" in subset else subset["rows"]:
            number += 1
            yield Row(number, record)


def load_task(name: str) -> Any:
    """An mteb task with its data."""
    import mteb

    try:
        return _loaded(mteb.get_task(name), name)
    except KeyError as error:
        raise DataError(f"mteb has no task {name!r}; {error.args[0]}") from error


def _loaded(task: Any, name: str) -> Any:
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises without a network
        raise ResourceError(
            f"the data of mteb task {name} cannot be loaded ({error}); connect to the hub once, or fill its "
            "cache or a mirror"
        ) from error
    return task


def tasks_of(name: str, mirror: str | None) -> list[Any]:
    """The tasks of a benchmark of mteb, or the one task of that name, without data; aggregates as parts.

    Args:
        name: such as `MTEB(eng, v1)` or `Banking77Classification`.
        mirror: folder with the data of tasks; None: they are loaded from the hub or its cache.

    Raises:
        DataError: mteb has neither.
    """
    import mteb

    try:
        tasks = list(mteb.get_benchmark(name).tasks)
    except KeyError:
        try:
            tasks = [mteb.get_task(name)]
        except KeyError as error:
            raise DataError(f"mteb has no benchmark or task {name!r}; {error.args[0]}") from error
    tasks = [part for task in tasks for part in getattr(task.metadata, "tasks", [task])]
    if mirror is not None:
        for task in tasks:
            point_at_mirror(task, resolve(mirror))
    return tasks


def mirror_folder(task: Any, mirror: Path) -> Path:
    """Where the rows of a task lie in a mirror."""
    dataset = task.metadata.dataset
    return mirror / str(dataset["path"]).replace("/", "__") / str(dataset["revision"])


def point_at_mirror(task: Any, mirror: Path) -> None:
    """Make a task read its rows from a mirror."""
    dataset = task.metadata.dataset | {"path": str(fetch(mirror_folder(task, mirror)))}
    task.metadata = task.metadata.model_copy(update={"dataset": dataset})


_TEXT_COLUMNS = ("text", "sentence1", "sentence2", "sentences", "query", "sentence", "question", "title")


def asked_texts(task: Any, *, documents: bool) -> Iterator[str]:
    """Texts that an evaluation on a task asks with: queries, or the texts to be sorted or compared.

    Args:
        task: of `tasks_of`; its data is loaded.
        documents: the documents that are searched too.

    Raises:
        ResourceError: the task's data cannot be loaded.
    """
    name = task.metadata.name
    _loaded(task, name)
    for split in task.metadata.eval_splits:
        for subset in _subsets(task.dataset, split, name):
            if "relevant_docs" in subset:
                yield from subset["queries"]["text"]
                if documents:
                    yield from subset["corpus"]["text"]
                continue
            rows = subset["rows"]
            for column in _TEXT_COLUMNS:
                if column in rows.column_names:
                    for value in rows[column]:
                        yield from [value] if isinstance(value, str) else value


def _subsets(dataset: Mapping[str, Any], split: str, name: str) -> list[Mapping[str, Any]]:
    """The split of each subset; a task without subsets has one."""
    subsets = [part for part in dataset.values() if isinstance(part, Mapping)] or [dataset]
    if not split:
        known = sorted({known for subset in subsets for known in subset})
        if len(known) != 1:
            raise DataError(f"mteb task {name} has the splits {', '.join(known)}; choose one with split")
        split = known[0]
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


READER = Reader("mteb", (), parts, read)

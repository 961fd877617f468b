"""Tasks that a user declares over files.

    tasks:
      - name: HelpSearch
        type: Retrieval
        folder: help  # corpus.jsonl, queries.jsonl and qrels/test.tsv
        instruction: Given a question, retrieve the answer
      - name: Tickets
        type: Classification
        train: tickets/train.parquet
        test: tickets/test.jsonl
        columns: {text: body, label: topic}

Files may have any format of training data; relative paths are taken from the folder of the YAML file. Ids and
labels are texts, whatever they look like: 007 stays 007. A document without a text is an empty one, any other
blank cell is refused.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from rayembed.common.errors import ConfigError, DataError, unknown_name
from rayembed.common.paths import fetch
from rayembed.common.settings import Frozen, read_yaml
from rayembed.config.data import UserSourceConfig
from rayembed.config.loading import validate_recipe
from rayembed.evaluation.local_tasks import LOCAL_TYPES, RetrievalContent, TaskDescription, local_task
from rayembed.records import READERS, Unreadable, find_parts, read_part
from rayembed.records.checks import class_name, is_duplicate
from rayembed.records.columns import Columns, is_missing
from rayembed.records.identified import as_text, identifier, read_collection, read_judgements, second_text
from rayembed.records.locations import StoredFile, list_files
from rayembed.records.schema import Kind

logger = logging.getLogger(__name__)

# Columns of each file of a type, in mteb's names.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "Classification": ("text", "label"),
    "Clustering": ("sentences", "labels"),
    "ClusteringLegacy": ("sentences", "labels"),
    "STS": ("sentence1", "sentence2", "score"),
    "PairClassification": ("sentence1", "sentence2", "labels"),
    "BitextMining": ("sentence1", "sentence2"),
    "Summarization": ("text", "human_summaries", "machine_summaries", "relevance"),
    "Reranking": ("query-id", "corpus-ids"),  # the candidates
}
_ALIKE: dict[str, Kind] = {  # layouts of training data whose spellings of columns are read here too
    "Classification": "labels",
    "Clustering": "labels",
    "STS": "scores",
    "PairClassification": "duplicates",
}
_LISTS: dict[str, tuple[tuple[str, ...], ...]] = {  # columns that hold lists, as long as one another
    "ClusteringLegacy": (("sentences", "labels"),),
    "Summarization": (("human_summaries",), ("machine_summaries", "relevance")),
}
_VARIED = {"STS": "score", "PairClassification": "labels", "Clustering": "labels"}
_SEARCH_TYPES = ("Retrieval", "Reranking")


class OwnTask(Frozen):
    """One entry of a task file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the task and its result file"
    )
    type: str = Field(description=f"one of {', '.join(LOCAL_TYPES)}")
    instruction: str | None = Field(None, description="on queries, or on all texts of a symmetric task")
    description: str = Field("Declared by the user.", description="shown in the report")
    languages: tuple[str, ...] = Field(("eng-Latn",), description="codes such as eng-Latn")
    folder: Path | None = Field(None, description="BEIR folder of a search task; or give the three files")
    corpus: Path | None = Field(None, description="documents: _id, text, optional title")
    queries: Path | None = Field(None, description="queries: _id, text")
    judgements: Path | None = Field(None, description="query-id, corpus-id, score")
    candidates: Path | None = Field(None, description="query-id, corpus-ids: the lists to put in order")
    train: Path | None = Field(None, description="training rows of a classification task")
    test: Path | None = Field(None, description="rows that are scored")
    columns: dict[str, str] = Field(default_factory=dict, description="expected column -> column of the file")
    min_score: float | None = Field(None, description="lowest human score of STS and summarization")
    max_score: float | None = Field(None, description="highest human score of STS and summarization")
    ignore_identical_ids: bool = Field(
        False, description="leave out of a query's results the document with its own id, as ArguAna does"
    )

    @model_validator(mode="after")
    def _files_fit_the_type(self) -> "OwnTask":
        if self.type not in LOCAL_TYPES:
            raise ValueError(unknown_name("task type", self.type, LOCAL_TYPES))
        if self.type in _SEARCH_TYPES:
            if self.folder is None and None in (self.corpus, self.queries, self.judgements):
                raise ValueError("give `folder`, or `corpus`, `queries` and `judgements`")
            if self.type == "Reranking" and self.candidates is None:
                raise ValueError("a reranking task needs `candidates`")
        elif self.test is None or (self.type == "Classification" and self.train is None):
            raise ValueError("give `test`" + (" and `train`" if self.type == "Classification" else ""))
        return self


class TaskFile(Frozen):
    """A file that declares tasks."""

    tasks: tuple[OwnTask, ...] = Field(description="the tasks, each name once")

    @model_validator(mode="after")
    def _names_differ(self) -> "TaskFile":
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is declared twice; give each task a name of its own")
        return self


def read_own_tasks(path: Path) -> dict[str, OwnTask]:
    """Tasks that the YAML file at `path` declares, by name.

    Raises:
        ConfigError: the file cannot be read, or all mistakes of its entries.
    """
    path = fetch(path)
    if not path.is_file():
        raise ConfigError(f"there is no task file {path}")
    try:
        content = read_yaml(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a task file; it needs a list under `tasks:`")
    return {task.name: task for task in validate_recipe(content, TaskFile, str(path)).tasks}


def load_own_task(task: OwnTask, base: Path) -> Any:
    """The mteb task of an entry whose paths are relative to `base`.

    Raises:
        DataError: a file is missing, damaged or empty, lacks a column or a value, or names an unknown
            document; or all training texts have one label.
    """
    if task.type in _SEARCH_TYPES:
        content: Any = _search_content(task, base)
    else:
        files = {"train": task.train, "test": task.test}
        content = {
            split: _typed(_read(base / file, task.type, task.columns), task.type, base / file)
            for split, file in files.items()
            if file is not None
        }
    if (varied := _VARIED.get(task.type)) and len(set(map(str, content["test"][varied]))) < 2:
        raise DataError(
            f"task {task.name}: all rows of {base / str(task.test)} have the {varied} "
            f"{content['test'][varied][0]!r}, so nothing can be scored; add rows with another"
        )
    if task.type == "Classification":
        if len(labels := set(content["train"]["label"])) < 2:
            raise DataError(
                f"task {task.name}: all texts of {base / str(task.train)} have the label {labels.pop()!r}; "
                "add texts of a second class"
            )
        if unknown := set(content["test"]["label"]) - labels:
            logger.warning(
                "task %s: no training text has the labels %s of test texts, which count as wrong",
                task.name, ", ".join(sorted(unknown)[:5]),
            )  # fmt: skip
        # mteb's scores of two classes need numbers.
        number = {label: place for place, label in enumerate(sorted(labels | set(content["test"]["label"])))}
        content = {
            split: columns | {"label": [number[label] for label in columns["label"]]}
            for split, columns in content.items()
        }
    settings = {"min_score": task.min_score, "max_score": task.max_score}
    if task.type in _SEARCH_TYPES:
        settings = {"ignore_identical_ids": task.ignore_identical_ids}
    description = TaskDescription(
        task.name,
        task.type,
        f"own/{task.name}",
        task.instruction,
        task.description,
        task.languages,
        {name: value for name, value in settings.items() if value is not None},
    )
    return local_task(description, content)


def _read(path: Path, kind: str, names: Mapping[str, str]) -> dict[str, list[Any]]:
    """Columns of a file, read whole, in mteb's names.

    Args:
        path: the file, of any format that training reads.
        kind: type of the task.
        names: mteb's name -> name in the file, where they differ.
    """
    needed = _COLUMNS[kind]
    records: list[dict[str, Any]] = []
    for part in find_parts(UserSourceConfig(path=str(path)), path.parent):
        for row in read_part(part):
            if isinstance(row.record, Unreadable):
                raise DataError(f"{path}, row {len(records) + 1}: {row.record.detail}; correct it")
            if row.record is not None:
                records.append(row.record)
    if not records:
        raise DataError(f"{path} has no rows")
    found = list(dict.fromkeys(column for record in records for column in record))
    if alike := _ALIKE.get(kind):
        usual = Columns(alike, {}).names(found)
        known = [next(iter(usual[column]), column) for column in Columns(alike, {}).needed]
        spelled = {own: name for own, name in zip(needed, known, strict=True) if own not in found}
        names = spelled | dict(names)
    if missing := [names.get(name, name) for name in needed if names.get(name, name) not in found]:
        raise DataError(f"{path} lacks the columns {missing}; it has {found}. Name yours under `columns:`")
    columns: dict[str, list[Any]] = {name: [] for name in needed}
    for number, record in enumerate(records, start=1):
        values: dict[str, Any] = {name: record.get(names.get(name, name)) for name in needed}
        for name, value in values.items():
            if is_missing(value) and not isinstance(value, str):
                raise DataError(f"{path}, row {number}: {name} is empty; fill it or drop the row")
        lengths = {len(value) if isinstance(value, list) else None for value in values.values()}
        unfold = kind in _VARIED and None not in lengths and len(lengths) == 1
        for name, value in values.items():  # mteb has sets with all rows in one
            columns[name] += value if unfold else [value]
    return columns


def _typed(columns: dict[str, list[Any]], kind: str, path: Path) -> dict[str, list[Any]]:
    """Columns of texts, finite numbers and labels, also out of files that know only texts.

    Labels of pairs are 0 and 1. One text may have several labels in `Clustering`, from coarse to fine.
    """
    lists = [name for group in _LISTS.get(kind, ()) for name in group]
    for name, values in columns.items():
        for row, value in enumerate(values):
            place = f"{path}, row {row + 1}: {name}"
            if (name in lists) != isinstance(value, list) and (kind, name) != ("Clustering", "labels"):
                wanted = "a list; give JSON lines or Parquet" if name in lists else "one text or number"
                raise DataError(f"{place} is {value!r:.60}, not {wanted}")
            many = [
                _converted(one, name, kind, place) for one in (value if isinstance(value, list) else [value])
            ]
            values[row] = many if isinstance(value, list) else many[0]
    for group in _LISTS.get(kind, ()):
        for row, together in enumerate(zip(*(columns[name] for name in group), strict=True), start=1):
            if len(set(map(len, together))) > 1:
                raise DataError(f"{path}, row {row}: {' and '.join(group)} differ in length; correct them")
    return columns


def _converted(value: Any, name: str, kind: str, place: str) -> Any:
    if name in ("score", "relevance"):
        try:
            if math.isfinite(number := float(value)):
                return number
        except (TypeError, ValueError):
            pass
        raise DataError(f"{place} {value!r:.60} is no number")
    if name not in ("label", "labels"):
        return as_text(value, place)
    if kind == "PairClassification":
        if (same := is_duplicate(value)) is None:
            raise DataError(f"{place} {value!r:.60} is neither 0 nor 1")
        return int(same)
    if not isinstance(label := class_name(value), str) or not label:
        raise DataError(f"{place} is {value!r:.60}, not one label")
    return label


def _files(path: Path) -> list[StoredFile]:
    """The files at a path that some reader takes, or the one file there."""
    files = list_files(str(path))
    return files if len(files) == 1 else [f for f in files if any(r.takes(f) for r in READERS.values())]


def _collection(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Id -> text of the rows of a file or folder."""
    texts: dict[str, str] = {}
    for file in _files(path):
        for key, text in read_collection(file, names):
            if texts.setdefault(key, text) != text:
                raise second_text(file, key)
    if not texts:
        raise DataError(f"{path} has no rows")
    return texts


def _search_content(task: OwnTask, base: Path) -> RetrievalContent:
    folder = base / task.folder if task.folder else base
    documents = _collection(folder / (task.corpus or "corpus.jsonl"), task.columns)
    query_file = folder / (task.queries or "queries.jsonl")
    texts = _collection(query_file, task.columns)
    judgement_file = folder / (task.judgements or "qrels/test.tsv")
    judgements = _whole_grades(
        {
            query: grades
            for file in _files(judgement_file)
            for query, grades in read_judgements(file, task.columns).items()
        }
    )
    for query, grades in judgements.items():
        for document in grades:
            if document not in documents or query not in texts:
                raise DataError(
                    f"{judgement_file} judges query {query} and document {document}, which are not both "
                    "among the queries and the corpus; add them or drop the line"
                )
        if not texts[query].strip():
            raise DataError(f"{query_file}: query {query} is judged and has no text; write it or drop both")
    if not any(grade for grades in judgements.values() for grade in grades.values()):
        raise DataError(f"{judgement_file} has no grade above 0, so nothing can be found; check its grades")
    scored = {query: text for query, text in texts.items() if query in judgements}
    same = sum(documents.get(query) == text for query, text in scored.items())
    if same and not task.ignore_identical_ids:
        logger.warning(
            "task %s: %d queries are documents of the corpus under the same id and find themselves first; "
            "leave those out with ignore_identical_ids: true",
            task.name, same,
        )  # fmt: skip
    candidates = None if task.candidates is None else _candidates(folder / task.candidates, task.columns)
    if candidates is not None:
        if missing := {name for names in candidates.values() for name in names} - set(documents):
            raise DataError(f"{task.candidates} lists documents that the corpus lacks: {sorted(missing)[:3]}")
        if without := [query for query in scored if not candidates.get(query)]:
            raise DataError(
                f"{task.candidates} has no documents for judged queries such as {without[:3]}; add them"
            )
        candidates = {query: candidates[query] for query in scored}
    return RetrievalContent(documents, scored, judgements, candidates)


def _candidates(path: Path, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Query id -> ids of the documents to put in order; a query may have several rows."""
    columns = _read(path, "Reranking", names)
    lists: dict[str, list[str]] = {}
    for query, documents in zip(*columns.values(), strict=True):
        if not isinstance(documents, list):
            raise DataError(f"{path}: corpus-ids is a text; give lists in JSON lines or Parquet")
        lists.setdefault(identifier(query) or "", []).extend(identifier(one) or "" for one in documents)
    return lists


def _whole_grades(judged: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, int]]:
    """Grades as the whole numbers that mteb's scorer takes: 0.5 and 1.0 become 1 and 2.

    All are multiplied alike, which changes no score: nDCG divides by the best order's gain.
    """
    grades = {grade for of_query in judged.values() for grade in of_query.values()}
    scale = next((by for by in (1, 2, 4, 5, 10, 100) if all((by * one).is_integer() for one in grades)), 1000)
    return {
        query: {
            document: max(1, round(scale * grade)) if grade > 0 else 0 for document, grade in of_query.items()
        }
        for query, of_query in judged.items()
    }

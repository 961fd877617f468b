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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from rayembed.common.errors import ConfigError, DataError, unknown_name
from rayembed.common.paths import fetch
from rayembed.common.settings import Frozen
from rayembed.config.data import UserSourceConfig
from rayembed.config.loading import validate_recipe
from rayembed.evaluation.local_tasks import LOCAL_TYPES, RetrievalContent, TaskDescription, local_task
from rayembed.records import Unreadable, find_parts, read_part
from rayembed.records.judged import read_judgements
from rayembed.records.locations import list_files

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
}
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
        content = yaml.safe_load(path.read_text())
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
            split: _typed(_read(base / file, _COLUMNS[task.type], task.columns), task.type, base / file)
            for split, file in files.items()
            if file is not None
        }
    if task.type == "Classification":
        if len(labels := set(content["train"]["label"])) < 2:
            raise DataError(
                f"task {task.name}: all texts of {base / str(task.train)} have the label {labels.pop()!r}; "
                "add texts of a second class"
            )
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


def _read(
    path: Path,
    needed: tuple[str, ...],
    names: Mapping[str, str],
    *,
    optional: tuple[str, ...] = (),
    may_be_blank: tuple[str, ...] = (),
) -> dict[str, list[Any]]:
    """Columns of a file, read whole, under the names in `needed`.

    Args:
        path: the file, of any format that training reads.
        needed: columns that have to be there.
        names: name in `needed` or `optional` -> name in the file, where they differ.
        optional: columns that may be missing; their values are None then.
        may_be_blank: columns of `needed` that may lack a value.
    """
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
    if missing := [names.get(name, name) for name in needed if names.get(name, name) not in found]:
        raise DataError(f"{path} lacks the columns {missing}; it has {found}. Name yours under `columns:`")
    columns = {
        name: [record.get(names.get(name, name)) for record in records] for name in (*needed, *optional)
    }
    for name in set(needed) - set(may_be_blank):
        if None in columns[name]:
            blank = columns[name].index(None)
            raise DataError(f"{path}, row {blank + 1}: {name} is empty; fill it or drop the row")
    return columns


def _typed(columns: dict[str, list[Any]], kind: str, path: Path) -> dict[str, list[Any]]:
    """Columns with numbers for scores and texts for labels, also out of files that know only texts."""
    kinds = {"score": float, "label": str, "labels": int if kind == "PairClassification" else str}
    for name, convert in kinds.items():
        values = columns.get(name, [])
        for row, value in enumerate(values):
            try:
                values[row] = list(map(convert, value)) if isinstance(value, list) else convert(value)
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}, row {row + 1}: {name} {value!r} is no number") from error
    return columns


def _search_content(task: OwnTask, base: Path) -> RetrievalContent:
    folder = base / task.folder if task.folder else base
    corpus = _read(
        folder / (task.corpus or "corpus.jsonl"),
        ("_id", "text"),
        task.columns,
        optional=("title",),
        may_be_blank=("text",),
    )
    documents = {
        str(name): f"{title or ''} {text or ''}".strip()
        for name, title, text in zip(corpus["_id"], corpus["title"], corpus["text"], strict=True)
    }
    query_file = folder / (task.queries or "queries.jsonl")
    asked = _read(query_file, ("_id", "text"), task.columns, may_be_blank=("text",))
    texts = {str(name): text for name, text in zip(asked["_id"], asked["text"], strict=True)}
    judgement_file = folder / (task.judgements or "qrels/test.tsv")
    judgements = _whole_grades(_judgements(judgement_file, task.columns))
    for query, grades in judgements.items():
        for document in grades:
            if document not in documents or query not in texts:
                raise DataError(
                    f"{judgement_file} judges query {query} and document {document}, which are not both "
                    "among the queries and the corpus; add them or drop the line"
                )
        if not str(texts[query] or "").strip():
            raise DataError(f"{query_file}: query {query} is judged and has no text; write it or drop both")
    candidates = None
    if task.type == "Reranking":
        assert task.candidates is not None
        lists = _read(folder / task.candidates, ("query-id", "corpus-ids"), task.columns)
        if any(isinstance(names, str) for names in lists["corpus-ids"]):
            raise DataError(f"{task.candidates}: corpus-ids is a text; give lists in JSON lines or Parquet")
        candidates = {
            str(query): [str(name) for name in names] for query, names in zip(*lists.values(), strict=True)
        }
        if missing := {name for names in candidates.values() for name in names} - set(documents):
            raise DataError(f"{task.candidates} lists documents that the corpus lacks: {sorted(missing)[:3]}")
    scored = {query: text for query, text in texts.items() if query in judgements}
    same = sum(documents.get(query) == text for query, text in scored.items())
    if same and not task.ignore_identical_ids:
        logger.warning(
            "task %s: %d queries are documents of the corpus under the same id and find themselves first; "
            "leave those out with ignore_identical_ids: true",
            task.name, same,
        )  # fmt: skip
    return RetrievalContent(documents, scored, judgements, candidates)


def _judgements(path: Path, names: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Query id -> document id -> grade, out of a table with those columns or a file of lines."""
    if path.suffix == ".tsv" and not names:
        return read_judgements(list_files(str(path))[0])
    columns = _read(path, ("query-id", "corpus-id", "score"), names)
    judged: dict[str, dict[str, float]] = {}
    for query, document, grade in zip(*_typed(columns, "Retrieval", path).values(), strict=True):
        judged.setdefault(str(query), {})[str(document)] = grade
    return judged


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

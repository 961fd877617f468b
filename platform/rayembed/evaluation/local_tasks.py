"""mteb tasks over rows that are already on this machine, and those that a user declares over files.

mteb brings the protocol and the metric of every task type; a class here says which of them belong together
and puts rows into the form that mteb expects. Built-in tasks are made of the same classes. A user's file:

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

Files are Parquet, JSON lines or tab-separated; relative paths are taken from the folder of the YAML file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.summarization import AbsTaskSummarization
from pydantic import Field, model_validator

from rayembed.common.errors import ConfigError, DataError, unknown_name
from rayembed.common.settings import Frozen
from rayembed.config.loading import validate_recipe
from rayembed.records.tables import read_columns

Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class RetrievalContent:
    """Rows of a retrieval or reranking task.

    Attributes:
        documents: document id -> text.
        queries: query id -> text.
        judgements: query id -> document id -> relevance, 1 or more.
        candidates: query id -> ids of the documents to put in order; reranking only.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, list[str]] | None = None


@dataclass(frozen=True)
class TaskDescription:
    """What mteb and the report have to know of a local task.

    Attributes:
        name: mteb task name.
        type: key of `LOCAL_TYPES`.
        source: where the rows come from.
        instruction: prompt of the task; queries, or all texts of a symmetric task, get it.
        description: what is asked of the model.
        languages: codes such as eng-Latn.
        settings: attributes of the task's class to override, such as max_score.
    """

    name: str
    type: str
    source: str
    instruction: str | None
    description: str
    languages: tuple[str, ...] = ("eng-Latn",)
    settings: Mapping[str, float] = field(default_factory=dict)


class LocalTask:
    """What the task types share: description, rows and a revision that follows both.

    The revision in the metadata is a digest of the description, of the settings of the class and of every
    row, so a stored result is reused only while all of them are the same.
    """

    main_score: ClassVar[str]
    mteb_type: ClassVar[str]
    category: ClassVar[str] = "t2t"

    def __init__(self, description: TaskDescription, content: Any):
        self.description = description
        for name, value in description.settings.items():
            setattr(self, name, value)
        self.metadata = TaskMetadata(
            name=description.name,
            description=description.description,
            type=cast(Any, self.mteb_type),
            main_score=self.main_score,
            prompt=description.instruction,
            dataset={"path": description.source, "revision": self._revision(content)},
            eval_splits=["test"],
            eval_langs=list(description.languages),
            category=cast(Any, self.category),
        )
        super().__init__()
        self.dataset: Any = self.build(content)
        self.data_loaded = True

    def build(self, content: Any) -> Any:
        """Rows in the form that mteb expects of this task type; by default columns of each split."""
        return DatasetDict({split: Dataset.from_dict(dict(columns)) for split, columns in content.items()})

    def _revision(self, content: Any) -> str:
        settings = [
            (name, value)
            for kind in type(self).__mro__
            if issubclass(kind, LocalTask)
            for name, value in sorted(vars(kind).items())
            if isinstance(value, int | float)
        ]
        rows = asdict(content) if isinstance(content, RetrievalContent) else content
        digest = hashlib.sha256(repr((self.description, settings)).encode())
        digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


class LocalRetrieval(LocalTask, AbsTaskRetrieval):
    """Find the documents that answer a query."""

    mteb_type = "Retrieval"
    main_score = "ndcg_at_10"

    def build(self, content: RetrievalContent) -> Any:
        """Corpus, queries, judgements and candidates of the one split."""
        documents, queries = content.documents, content.queries
        split = RetrievalSplitData(
            corpus=Dataset.from_dict(
                {"id": list(documents), "title": [""] * len(documents), "text": list(documents.values())}
            ),
            queries=Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
            relevant_docs={query: dict(grades) for query, grades in content.judgements.items()},
            top_ranked=dict(content.candidates) if content.candidates is not None else None,
        )
        return {"default": {"test": split}}


class LocalReranking(LocalRetrieval):
    """Put the candidates of a query in order."""

    mteb_type = "Reranking"
    main_score = "map_at_1000"


class LocalClassification(LocalTask, AbsTaskClassification):
    """Labels: logistic regression on 16 training texts per label, ten draws."""

    mteb_type = "Classification"
    main_score = "accuracy"
    category = "t2c"
    samples_per_label = 16
    n_experiments = 10


class LocalClustering(LocalTask, AbsTaskClustering):
    """Labels: k-means on bootstrap samples of the embedded texts, ten draws."""

    mteb_type = "Clustering"
    main_score = "v_measure"
    category = "t2c"
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 1000


class LocalClusteringLegacy(LocalTask, AbsTaskClusteringLegacy):
    """Labels: one k-means for each row, which holds a list of texts and a list of labels."""

    mteb_type = "Clustering"
    main_score = "v_measure"
    category = "t2c"


class LocalSTS(LocalTask, AbsTaskSTS):
    """Scores: rank correlation of the cosine with human judgement."""

    mteb_type = "STS"
    main_score = "cosine_spearman"
    min_score = 0
    max_score = 10


class LocalPairClassification(LocalTask, AbsTaskPairClassification):
    """Pairs that belong together (1) or not (0): average precision of the similarity."""

    mteb_type = "PairClassification"
    main_score = "max_ap"


class LocalBitextMining(LocalTask, AbsTaskBitextMining):
    """Find the translation of each sentence among all of the other language."""

    mteb_type = "BitextMining"
    main_score = "f1"


class LocalSummarization(LocalTask, AbsTaskSummarization):
    """Scores of machine summaries: correlation with their similarity to human summaries."""

    mteb_type = "Summarization"
    main_score = "cosine_spearman"
    min_score = 0
    max_score = 5


LOCAL_TYPES: dict[str, type[LocalTask]] = {
    "Retrieval": LocalRetrieval,
    "Reranking": LocalReranking,
    "Classification": LocalClassification,
    "Clustering": LocalClustering,
    "ClusteringLegacy": LocalClusteringLegacy,
    "STS": LocalSTS,
    "PairClassification": LocalPairClassification,
    "BitextMining": LocalBitextMining,
    "Summarization": LocalSummarization,
}


def local_task(description: TaskDescription, content: Any) -> Any:
    """An mteb task of the type that `description` names.

    Args:
        description: what the task is.
        content: `RetrievalContent` for retrieval and reranking; for the other types split -> column ->
        values, with mteb's column names.
    """
    return LOCAL_TYPES[description.type](description, content)


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
        DataError: a file is missing, damaged or empty, lacks a column, or names an unknown document.
    """
    if task.type in _SEARCH_TYPES:
        content: Any = _search_content(task, base)
    else:
        files = {"train": task.train, "test": task.test}
        content = {
            split: read_columns(base / file, _COLUMNS[task.type], task.columns)
            for split, file in files.items()
            if file is not None
        }
    scores = {"min_score": task.min_score, "max_score": task.max_score}
    description = TaskDescription(
        task.name,
        task.type,
        f"own/{task.name}",
        task.instruction,
        task.description,
        task.languages,
        {name: value for name, value in scores.items() if value is not None},
    )
    return local_task(description, content)


def _search_content(task: OwnTask, base: Path) -> RetrievalContent:
    folder = base / task.folder if task.folder else base
    corpus_file = folder / (task.corpus or "corpus.jsonl")
    corpus = read_columns(corpus_file, ("_id", "text"), task.columns, optional=("title",))
    titles = corpus.get("title") or [""] * len(corpus["_id"])
    documents = {
        str(name): f"{title or ''} {text}".strip()
        for name, title, text in zip(corpus["_id"], titles, corpus["text"], strict=True)
    }
    asked = read_columns(folder / (task.queries or "queries.jsonl"), ("_id", "text"), task.columns)
    texts = {str(name): text for name, text in zip(asked["_id"], asked["text"], strict=True)}
    judgement_file = folder / (task.judgements or "qrels/test.tsv")
    judged = read_columns(judgement_file, ("query-id", "corpus-id", "score"), task.columns)
    judgements: dict[str, dict[str, int]] = {}
    for query, document, grade in zip(*judged.values(), strict=True):
        if str(document) not in documents or str(query) not in texts:
            raise DataError(
                f"{judgement_file} judges query {query} and document {document}, which are not both among "
                "the queries and the corpus; add them or drop the line"
            )
        judgements.setdefault(str(query), {})[str(document)] = int(grade)
    candidates = None
    if task.type == "Reranking":
        assert task.candidates is not None
        lists = read_columns(folder / task.candidates, ("query-id", "corpus-ids"), task.columns)
        candidates = {
            str(query): [str(name) for name in names] for query, names in zip(*lists.values(), strict=True)
        }
        if missing := {name for names in candidates.values() for name in names} - set(documents):
            raise DataError(f"{task.candidates} lists documents that the corpus lacks: {sorted(missing)[:3]}")
    scored = {query: text for query, text in texts.items() if query in judgements}
    return RetrievalContent(documents, scored, judgements, candidates)

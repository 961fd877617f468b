"""mteb tasks over rows that are already on this machine.

mteb brings the protocol and the metric of every task type; a class here says which of them belong together
and puts rows into the form that mteb expects. Built-in tasks and those of users are made of these classes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, cast

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

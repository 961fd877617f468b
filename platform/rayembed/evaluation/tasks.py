"""Built-in mteb tasks over the test splits of the built-in sources.

mteb brings the protocol and the metric of every task type; this file only feeds it rows. Tasks are capped by
hash of the row's id, so that the same rows are chosen on every machine and whatever the order of the file.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow as pa
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from rayembed.data.store import read_split


@dataclass(frozen=True)
class TaskDefinition:
    """One row of the task table.

    Attributes:
        name: mteb task name.
        source: built-in source whose test split is evaluated.
        type: mteb task type: Retrieval, Classification, Clustering or STS.
        instruction: prompt of the task; queries or all texts of a symmetric task get it.
        description: what is asked of the model.
        max_queries: most rows that are scored (queries, test texts); None takes all.
        max_documents: most documents in the corpus of a retrieval task; None takes all.
    """

    name: str
    source: str
    type: str
    instruction: str
    description: str
    max_queries: int | None = None
    max_documents: int | None = None


_SENTIMENT = "Classify the sentiment of the text as positive or negative"
_WORDS = "Retrieve words that have the same meaning as the given word"

TASKS: dict[str, TaskDefinition] = {
    definition.name: definition
    for definition in (
        TaskDefinition(
            "DocstringRetrieval",
            "python-docstrings",
            "Retrieval",
            "Given a docstring, retrieve the Python function that it describes",
            "Docstring of a standard library function to its source, in modules kept out of training.",
        ),
        TaskDefinition(
            "WordNetGlossRetrieval",
            "wordnet-glosses",
            "Retrieval",
            "Given a word or a sentence that uses it, retrieve the definition of the word",
            "WordNet lemma or usage example to the gloss of its synset.",
            max_queries=500,
            max_documents=3000,
        ),
        TaskDefinition(
            "VaderTweets",
            "vader-tweets",
            "Classification",
            _SENTIMENT,
            "Sentiment of tweets, rated by people.",
            max_queries=500,
        ),
        TaskDefinition(
            "VaderAmazon",
            "vader-amazon",
            "Classification",
            _SENTIMENT,
            "Sentiment of sentences from product reviews, rated by people.",
            max_queries=500,
        ),
        TaskDefinition(
            "VaderMovies",
            "vader-movies",
            "Classification",
            _SENTIMENT,
            "Sentiment of sentences from film reviews, rated by people.",
            max_queries=500,
        ),
        TaskDefinition(
            "VaderNewYorkTimes",
            "vader-nytimes",
            "Classification",
            _SENTIMENT,
            "Sentiment of sentences from newspaper opinion pieces, rated by people.",
            max_queries=500,
        ),
        TaskDefinition(
            "WordNetLexnameClustering",
            "wordnet-lexnames",
            "Clustering",
            "Identify the semantic field of the definition",
            "WordNet glosses of nouns grouped by topic, such as noun.animal.",
            max_queries=1000,
        ),
        TaskDefinition(
            "WordSim353", "wordsim353", "STS", _WORDS, "Relatedness of two words, judged by people."
        ),
        TaskDefinition("SimLex999", "simlex999", "STS", _WORDS, "Similarity of two words, judged by people."),
    )
}


class BuiltInTask:
    """What the four task types share: reading the source and describing it to mteb.

    The revision in the metadata is a digest of the definition, of the settings of the class and of every row
    read, so a stored result is reused only while all of them are the same.
    """

    main_score: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, definition: TaskDefinition, data_dir: Path):
        tables = {split: read_split(data_dir, definition.source, split) for split in self.splits}
        self.definition = definition
        self.metadata = TaskMetadata(
            name=definition.name,
            description=definition.description,
            type=cast(Any, definition.type),
            main_score=self.main_score,
            prompt=definition.instruction,
            dataset={"path": definition.source, "revision": _revision(self, tables.values())},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            category="t2t" if definition.type in ("Retrieval", "STS") else "t2c",
        )
        super().__init__()
        self.dataset: Any = self.build(tables)
        self.data_loaded = True

    def build(self, tables: dict[str, pa.Table]) -> Any:
        """Rows in the form that mteb expects of this task type."""
        raise NotImplementedError

    def queries(self) -> list[str]:
        """Texts that carry the instruction; the training samples of a classifier are left out."""
        raise NotImplementedError

    def documents(self) -> list[str]:
        """Texts that carry none."""
        return []

    @property
    def workload(self) -> int:
        """Characters to encode, instructions included; stands in for tokens, which depend on the model."""
        queries = self.queries()
        return sum(map(len, queries + self.documents())) + len(queries) * len(self.definition.instruction)


class BuiltInRetrieval(BuiltInTask, AbsTaskRetrieval):
    """Pairs: every positive of the split is in the corpus; queries of equal text share their positives."""

    main_score = "ndcg_at_10"

    def build(self, tables: dict[str, pa.Table]) -> Any:
        """Corpus, queries and judgements."""
        documents: dict[str, str] = {}
        judgements: dict[str, dict[str, int]] = {}
        for row in tables["test"].to_pylist():
            positives = dict(zip(row["document_ids"], row["positives"], strict=False))
            documents |= positives
            judgements.setdefault(row["query"], {}).update(dict.fromkeys(positives, 1))
        queries = _sample(judgements, self.definition.max_queries)
        relevant = {document for query in queries for document in judgements[query]}
        others = [document for document in documents if document not in relevant]
        if self.definition.max_documents is not None:
            others = _sample(others, max(0, self.definition.max_documents - len(relevant)))
        corpus = sorted(relevant) + sorted(others)
        identifiers = {query: f"q{position}" for position, query in enumerate(queries)}
        texts = [documents[document] for document in corpus]
        split = RetrievalSplitData(
            corpus=Dataset.from_dict({"id": corpus, "title": [""] * len(corpus), "text": texts}),
            queries=Dataset.from_dict({"id": list(identifiers.values()), "text": queries}),
            relevant_docs={identifiers[query]: judgements[query] for query in queries},
            top_ranked=None,
        )
        return {"default": {"test": split}}

    def queries(self) -> list[str]:
        """Queries."""
        return list(self.dataset["default"]["test"]["queries"]["text"])

    def documents(self) -> list[str]:
        """Corpus."""
        return list(self.dataset["default"]["test"]["corpus"]["text"])


class BuiltInClassification(BuiltInTask, AbsTaskClassification):
    """Labels: logistic regression on 16 training texts per label, ten draws.

    mteb looks at every training row in every draw, so the rows that it draws from are capped too.
    """

    main_score = "accuracy"
    splits = ("train", "test")
    samples_per_label = 16
    n_experiments = 10
    max_training = 500

    def build(self, tables: dict[str, pa.Table]) -> Any:
        """Train and test texts with integer labels in the order of the sorted names."""
        labels = sorted(set(tables["train"]["label"].to_pylist()))
        rows = {
            "train": _sample_rows(tables["train"].to_pylist(), self.max_training),
            "test": _sample_rows(tables["test"].to_pylist(), self.definition.max_queries),
        }
        columns = {
            split: {
                "text": [row["text"] for row in members],
                "label": [labels.index(row["label"]) for row in members],
            }
            for split, members in rows.items()
        }
        return DatasetDict({split: Dataset.from_dict(content) for split, content in columns.items()})

    def queries(self) -> list[str]:
        """Test texts."""
        return list(self.dataset["test"]["text"])


class BuiltInClustering(BuiltInTask, AbsTaskClustering):
    """Labels: k-means on bootstrap samples of the embedded texts, ten draws."""

    main_score = "v_measure"
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 1000

    def build(self, tables: dict[str, pa.Table]) -> Any:
        """Test texts with their labels."""
        rows = _sample_rows(tables["test"].to_pylist(), self.definition.max_queries)
        columns = {"sentences": [row["text"] for row in rows], "labels": [row["label"] for row in rows]}
        return DatasetDict(test=Dataset.from_dict(columns))

    def queries(self) -> list[str]:
        """Test texts."""
        return list(self.dataset["test"]["sentences"])


class BuiltInSTS(BuiltInTask, AbsTaskSTS):
    """Scores: rank correlation of the cosine with human judgement, 0 to 10."""

    main_score = "cosine_spearman"
    min_score = 0
    max_score = 10

    def build(self, tables: dict[str, pa.Table]) -> Any:
        """Pairs with their score."""
        columns = tables["test"].select(["sentence1", "sentence2", "score"]).to_pydict()
        return DatasetDict(test=Dataset.from_dict(columns))

    def queries(self) -> list[str]:
        """Both sides of every pair."""
        return [*self.dataset["test"]["sentence1"], *self.dataset["test"]["sentence2"]]


_CLASSES: dict[str, type[BuiltInTask]] = {
    "Retrieval": BuiltInRetrieval,
    "Classification": BuiltInClassification,
    "Clustering": BuiltInClustering,
    "STS": BuiltInSTS,
}


def main_score_of(name: str) -> str:
    """mteb's key of the main score of a built-in task."""
    return _CLASSES[TASKS[name].type].main_score


def load_task(name: str, data_dir: Path) -> Any:
    """Built-in task `name` with its rows, as an mteb task.

    Raises:
        DataError: its source has not been built in `data_dir` or has another form.
    """
    definition = TASKS[name]
    return _CLASSES[definition.type](definition, data_dir)


def _sample(keys: Iterable[str], limit: int | None) -> list[str]:
    """At most `limit` of the keys: those with the smallest hash, in the order of the hash."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:limit]


def _sample_rows(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    by_identifier = {row["text_id"]: row for row in rows}
    return [by_identifier[identifier] for identifier in _sample(by_identifier, limit)]


def _revision(task: BuiltInTask, tables: Iterable[pa.Table]) -> str:
    settings = [
        (name, value) for name, value in sorted(vars(type(task)).items()) if isinstance(value, int | float)
    ]
    digest = hashlib.sha256(repr((task.definition, settings)).encode())
    for table in tables:
        digest.update(repr(table.to_pydict()).encode())
    return digest.hexdigest()[:16]

"""Table of the built-in tasks: what is asked of which built-in source."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import pyarrow as pa

from rayembed.data.bm25 import identifier_parts
from rayembed.data.store import read_split
from rayembed.evaluation.local_tasks import Columns, RetrievalContent, TaskDescription, local_task

CANDIDATES_PER_QUERY = 20
MAX_TRAINING_ROWS = 500  # mteb looks at every training row in every draw

Tables = Mapping[str, pa.Table]


def retrieval(tables: Tables, max_queries: int | None, max_documents: int | None) -> RetrievalContent:
    """Pairs: every positive of the split is in the corpus; queries of equal text share their positives."""
    documents, judgements = _judged(tables["test"])
    queries = _sample(judgements, max_queries)
    relevant = {document for query in queries for document in judgements[query]}
    others = [document for document in documents if document not in relevant]
    if max_documents is not None:
        others = _sample(others, max(0, max_documents - len(relevant)))
    corpus = sorted(relevant) + sorted(others)
    names = {query: f"q{position}" for position, query in enumerate(queries)}
    return RetrievalContent(
        {document: documents[document] for document in corpus},
        {name: query for query, name in names.items()},
        {names[query]: judgements[query] for query in queries},
    )


def reranking(tables: Tables, max_queries: int | None, max_documents: int | None) -> RetrievalContent:
    """Pairs: the positives of a query among the documents that BM25 finds most alike."""
    content = retrieval(tables, max_queries, max_documents)
    found = _lexical_neighbours(content)
    candidates = {
        query: _sample({*content.judgements[query], *others[:CANDIDATES_PER_QUERY]}, None)
        for query, others in found.items()
    }
    used = {document for members in candidates.values() for document in members}
    documents = {name: text for name, text in content.documents.items() if name in used}
    return RetrievalContent(documents, content.queries, content.judgements, candidates)


def pair_classification(tables: Tables, max_queries: int | None, max_documents: int | None) -> Any:
    """Pairs: a query with its positive (1) and with the other document that BM25 finds most alike (0)."""
    content = retrieval(tables, max_queries, max_documents)
    rows: list[tuple[str, str, int]] = []
    for query, others in _lexical_neighbours(content).items():
        positive = min(content.judgements[query])
        rows.append((content.queries[query], content.documents[positive], 1))
        rows.append((content.queries[query], content.documents[others[0]], 0))
    return {"test": _columns(rows, ("sentence1", "sentence2", "labels"))}


def bitext_mining(tables: Tables, max_queries: int | None, max_documents: int | None) -> Any:
    """Pairs: a query is the sentence, its first positive the translation; both occur once."""
    translations: dict[str, str] = {}
    seen: set[str] = set()
    for row in tables["test"].to_pylist():
        translation = row["positives"][0]
        if row["query"] not in translations and translation not in seen:
            translations[row["query"]] = translation
            seen.add(translation)
    chosen = _sample(translations, max_queries)
    return {"test": _columns([(text, translations[text]) for text in chosen], ("sentence1", "sentence2"))}


def classification(tables: Tables, max_queries: int | None, max_documents: int | None) -> Any:
    """Labels: training and test texts with integer labels in the order of the sorted names."""
    labels = sorted(set(tables["train"]["label"].to_pylist()))
    per_label = (
        len(labels) * 20
    )  # at least what the draws of 16 texts a label need, whatever the number of labels
    limits = {"train": max(MAX_TRAINING_ROWS, per_label), "test": max_queries}
    return {
        split: _columns(
            [
                (row["text"], labels.index(row["label"]))
                for row in _sample_rows(tables[split].to_pylist(), limit)
                if row["label"] in labels
            ],
            ("text", "label"),
        )
        for split, limit in limits.items()
    }


def clustering(tables: Tables, max_queries: int | None, max_documents: int | None) -> Any:
    """Labels: test texts with their labels."""
    rows = _sample_rows(tables["test"].to_pylist(), max_queries)
    return {"test": _columns([(row["text"], row["label"]) for row in rows], ("sentences", "labels"))}


def sts(tables: Tables, max_queries: int | None, max_documents: int | None) -> Any:
    """Scores: pairs with their score."""
    return {"test": tables["test"].select(["sentence1", "sentence2", "score"]).to_pydict()}


Builder = Callable[[Tables, int | None, int | None], Any]

BUILDERS: dict[str, Builder] = {
    "Retrieval": retrieval,
    "Reranking": reranking,
    "PairClassification": pair_classification,
    "BitextMining": bitext_mining,
    "Classification": classification,
    "Clustering": clustering,
    "STS": sts,
}


def _judged(table: pa.Table) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Texts of the documents, and for each query the ids of its positives."""
    documents: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for row in table.to_pylist():
        positives = dict(zip(row["document_ids"], row["positives"], strict=False))
        documents |= positives
        judgements.setdefault(row["query"], {}).update(dict.fromkeys(positives, 1))
    return documents, judgements


def _lexical_neighbours(content: RetrievalContent) -> dict[str, list[str]]:
    """For each query the documents that do not answer it, those with the highest BM25 score first.

    Parameters and words differ from those of `data.bm25`, because a change would make other tasks of these.
    """
    names = list(content.documents)
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index([identifier_parts(text) for text in content.documents.values()], show_progress=False)
    most_positives = max(len(positives) for positives in content.judgements.values())
    wanted = min(len(names), CANDIDATES_PER_QUERY + most_positives)
    asked = [identifier_parts(text) for text in content.queries.values()]
    found, _ = index.retrieve(asked, k=wanted, show_progress=False)
    return {
        query: [names[position] for position in ranked if names[position] not in content.judgements[query]]
        for query, ranked in zip(content.queries, found.tolist(), strict=True)
    }


def _columns(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> Columns:
    return {name: [row[position] for row in rows] for position, name in enumerate(names)}


def _sample(keys: Iterable[str], limit: int | None) -> list[str]:
    """At most `limit` of the keys: those with the smallest hash, in the order of the hash."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:limit]


def _sample_rows(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    by_identifier = {row["text_id"]: row for row in rows}
    return [by_identifier[identifier] for identifier in _sample(by_identifier, limit)]


@dataclass(frozen=True)
class TaskDefinition:
    """One row of the task table.

    Attributes:
        name: mteb task name.
        source: built-in source whose test split is evaluated.
        type: mteb task type, a key of `derived.BUILDERS`.
        instruction: prompt of the task; queries or all texts of a symmetric task get it.
        description: what is asked of the model.
        max_queries: most rows that are scored (queries, test texts); None takes all.
        max_documents: most documents in the corpus of a retrieval task; None takes all.
        languages: codes of the languages of the texts.
    """

    name: str
    source: str
    type: str
    instruction: str
    description: str
    max_queries: int | None = None
    max_documents: int | None = None
    languages: tuple[str, ...] = ("eng-Latn",)


_CODE = "Given a docstring, retrieve the Python function that it describes"
_GLOSS = "Given a word or a sentence that uses it, retrieve the definition of the word"
_SENTIMENT = "Classify the sentiment of the text as positive or negative"
_FIELD = "Identify the semantic field of the definition"
_PACKAGE = "Given the synopsis of a software package, retrieve its description"
_SECTION = "Identify the topic of the software package"
_TRANSLATION = "Retrieve the translation of the sentence"
_WORDS = "Retrieve words that have the same meaning as the given word"


def _bitext(name: str, code: str, language: str) -> TaskDefinition:
    return TaskDefinition(
        f"Debian{language}Bitext",
        f"debian-bitext-{name}",
        "BitextMining",
        _TRANSLATION,
        f"Synopses of Debian packages and their {language} translations.",
        max_queries=500,
        languages=("eng-Latn", code),
    )


def _sentiment(name: str, source: str, texts: str) -> TaskDefinition:
    return TaskDefinition(
        name, source, "Classification", _SENTIMENT, f"Sentiment of {texts}, rated by people.", max_queries=500
    )


TASKS: dict[str, TaskDefinition] = {
    definition.name: definition
    for definition in (
        TaskDefinition(
            "DocstringRetrieval",
            "python-docstrings",
            "Retrieval",
            _CODE,
            "Docstring of a standard library function to its source, in modules kept out of training.",
        ),
        TaskDefinition(
            "WordNetGlossRetrieval",
            "wordnet-glosses",
            "Retrieval",
            _GLOSS,
            "WordNet lemma or usage example to the gloss of its synset.",
            max_queries=500,
            max_documents=3000,
        ),
        _sentiment("VaderTweets", "vader-tweets", "tweets"),
        _sentiment("VaderAmazon", "vader-amazon", "sentences from product reviews"),
        _sentiment("VaderMovies", "vader-movies", "sentences from film reviews"),
        _sentiment("VaderNewYorkTimes", "vader-nytimes", "sentences from newspaper opinion pieces"),
        TaskDefinition(
            "WordNetLexnameClustering",
            "wordnet-lexnames",
            "Clustering",
            _FIELD,
            "WordNet glosses of nouns grouped by topic, such as noun.animal.",
            max_queries=1000,
        ),
        TaskDefinition(
            "WordSim353", "wordsim353", "STS", _WORDS, "Relatedness of two words, judged by people."
        ),
        TaskDefinition("SimLex999", "simlex999", "STS", _WORDS, "Similarity of two words, judged by people."),
        TaskDefinition(
            "WordNetLexnameClassification",
            "wordnet-lexnames",
            "Classification",
            _FIELD,
            "WordNet glosses of nouns sorted into 25 topics.",
            max_queries=500,
        ),
        TaskDefinition(
            "DocstringReranking",
            "python-docstrings",
            "Reranking",
            _CODE,
            "The function of a docstring among the twenty that BM25 finds most alike.",
            max_queries=200,
        ),
        TaskDefinition(
            "WordNetGlossReranking",
            "wordnet-glosses",
            "Reranking",
            _GLOSS,
            "The gloss of a word or a usage example among the twenty that BM25 finds most alike.",
            max_queries=200,
            max_documents=2000,
        ),
        TaskDefinition(
            "DocstringPairs",
            "python-docstrings",
            "PairClassification",
            _CODE,
            "Docstring and function: the right one or the one that BM25 finds most alike.",
            max_queries=200,
        ),
        TaskDefinition(
            "WordNetGlossPairs",
            "wordnet-glosses",
            "PairClassification",
            _GLOSS,
            "Word or usage example and gloss: the right one or the one that BM25 finds most alike.",
            max_queries=300,
            max_documents=2000,
        ),
        TaskDefinition(
            "DebianRetrieval",
            "debian-descriptions",
            "Retrieval",
            _PACKAGE,
            "Synopsis of a Debian package to its description.",
            max_queries=500,
            max_documents=3000,
        ),
        TaskDefinition(
            "DebianReranking",
            "debian-descriptions",
            "Reranking",
            _PACKAGE,
            "The description of a Debian package among the twenty that BM25 finds most alike.",
            max_queries=200,
            max_documents=2000,
        ),
        TaskDefinition(
            "DebianSectionClassification",
            "debian-sections",
            "Classification",
            _SECTION,
            "Descriptions of Debian packages sorted into 20 sections.",
            max_queries=500,
        ),
        TaskDefinition(
            "DebianSectionClustering",
            "debian-sections",
            "Clustering",
            _SECTION,
            "Descriptions of Debian packages grouped by section.",
            max_queries=1000,
        ),
        _bitext("de", "deu-Latn", "German"),
        _bitext("fr", "fra-Latn", "French"),
        TaskDefinition(
            "PerlQuestionRetrieval",
            "perlfaq",
            "Retrieval",
            "Given a question about Perl, retrieve the answer",
            "Frequently asked question about Perl to its answer.",
        ),
        TaskDefinition(
            "PerlMessageRetrieval",
            "perldiag",
            "Retrieval",
            "Given an error message of Perl, retrieve its explanation",
            "Message of the Perl interpreter to its explanation.",
        ),
    )
}


def load_task(name: str, data_dir: Path) -> Any:
    """Built-in task `name` with its rows, as an mteb task.

    Raises:
        DataError: its source has not been built in `data_dir` or has another form.
    """
    definition = TASKS[name]
    splits = ("train", "test") if definition.type == "Classification" else ("test",)
    tables = {split: read_split(data_dir, definition.source, split) for split in splits}
    content = BUILDERS[definition.type](tables, definition.max_queries, definition.max_documents)
    description = TaskDescription(
        definition.name,
        definition.type,
        definition.source,
        definition.instruction,
        definition.description,
        definition.languages,
    )
    return local_task(description, content)

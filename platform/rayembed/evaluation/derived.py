"""Content of the built-in tasks, made from the splits of the built-in sources.

Tasks are capped by hash of the row's id, so that the same rows are chosen on every machine and whatever
the order of the file.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import bm25s
import pyarrow as pa

from rayembed.evaluation.bm25 import K1, B, terms
from rayembed.evaluation.local_task import Columns, RetrievalContent

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
    """For each query the documents that do not answer it, those with the highest BM25 score first."""
    names = list(content.documents)
    index = bm25s.BM25(k1=K1, b=B)
    index.index([terms(text) for text in content.documents.values()], show_progress=False)
    most_positives = max(len(positives) for positives in content.judgements.values())
    wanted = min(len(names), CANDIDATES_PER_QUERY + most_positives)
    asked = [terms(text) for text in content.queries.values()]
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

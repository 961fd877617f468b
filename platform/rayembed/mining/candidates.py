"""Candidates of every query with their scores, on disk, so that filters can be run again without encoding.

Part 3 holds the queries of shard 3. Columns: `documents` and `scores`, best first; `positives` and
`positive_scores` of the query's known positives. Documents are positions in the collection. Three queries:

    documents  scores      positives  positive_scores
    [7, 2]     [0.9, 0.4]  [1]        [0.8]             7 outscores the positive: a filter will reject it
    [0]        [0.3]       [4, 5]     [0.7, 0.2]        top_k was 2, one candidate was excluded
    []         []          [3]        [0.0]             BM25 found no shared word
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.device import resolve_device
from rayembed.common.paths import atomic_write, fetch, file_digest
from rayembed.common.ray_work import run_items
from rayembed.data.bm25 import BM25Index, best_documents
from rayembed.data.plan import fingerprint
from rayembed.mining.collection import Collection
from rayembed.mining.config import Anchor
from rayembed.mining.search import Excluded, exact_top_k
from rayembed.mining.teachers import VectorJob

_SCHEMA = pa.schema(
    {
        "documents": pa.list_(pa.int32()),
        "scores": pa.list_(pa.float32()),
        "positives": pa.list_(pa.int32()),
        "positive_scores": pa.list_(pa.float32()),
    }
)


@dataclass(frozen=True)
class Candidates:
    """Candidates of one query by one teacher, best first, and its known positives, as numpy arrays.

    `calibrated` says that equal scores mean the same for all queries, as cosines do and BM25's sums do not.
    """

    documents: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray
    calibrated: bool = True

    def anchor(self, which: Anchor, own: Sequence[int] = ()) -> float:
        """Score that filters compare with: of a row's own positives, or the best or least of the query's."""
        scores = self.positive_scores
        mine = scores[np.isin(self.positives, own)]
        if which == "own" and len(mine):
            scores = mine
        if not len(scores):
            return 0.0
        return float(scores.min() if which == "min" else scores.max())

    def ranks(self, documents: Sequence[int], within: int) -> bool:
        """Whether one of these positives is among the first `within` of all documents.

        At a score of 0 BM25 has found no word of the query, so that the document has no rank.
        """
        scores = self.positive_scores[np.isin(self.positives, documents)]
        if not len(scores) or not (self.calibrated or scores.max() > 0):
            return False
        return int((self.scores > scores.max()).sum()) < within

    def may_veto(self, top_k: int, anchor: float) -> bool:
        """Whether other teachers are to heed what this one's filters reject.

        A teacher that does not find the positive itself among its first `top_k` has no opinion on it.
        """
        outside = len(self.scores) >= top_k and anchor < self.scores[-1]
        return self.calibrated and anchor > 0 and not outside


@dataclass(frozen=True)
class SearchJob:
    """A search of all queries with one teacher.

    Attributes:
        queries, documents: vectors of a dense teacher, or None twice for BM25.
        query_texts, document_texts: stored texts.
        pairs: file of the known positives and excluded pairs.
        top_k: candidates of a query.
        folder: where the parts go, inside it a folder named by all the others.
    """

    query_texts: Path
    document_texts: Path
    queries: VectorJob | None
    documents: VectorJob | None
    pairs: Path
    top_k: int
    folder: Path

    @cached_property
    def parts(self) -> list[Path]:
        """Files in order, whether or not they are there yet."""
        made_from: dict[str, object] = {
            "vectors": [job.folder.name if job else None for job in (self.queries, self.documents)],
            "texts": [file_digest(self.query_texts), file_digest(self.document_texts)],
            "pairs": file_digest(self.pairs),
            "top_k": self.top_k,
        }
        folder = self.folder / f"candidates-{fingerprint(made_from)[:12]}"
        return [
            folder / f"{index:05d}.parquet"
            for index in range(pq.ParquetFile(self.query_texts).num_row_groups)
        ]


class SearchPart:
    """Finds the candidates of one part of the queries; an actor's worker."""

    def __init__(self, job: SearchJob):
        self._job = job
        with np.load(fetch(job.pairs), allow_pickle=False) as pairs:
            self._positives = pairs["positive_queries"], pairs["positive_documents"]
            self._excluded = pairs["excluded_queries"], pairs["excluded_documents"]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Search part `item["part"]`."""
        part = item["part"]
        metadata = pq.ParquetFile(fetch(self._job.query_texts)).metadata
        start = sum(metadata.row_group(earlier).num_rows for earlier in range(part))
        count = metadata.row_group(part).num_rows
        positives = _between(*self._positives, start, start + count)
        excluded = _between(*self._excluded, start, start + count)
        search = self._search_words if self._job.queries is None else self._search_vectors
        scores, documents, positive_scores = search(part, positives, excluded)
        bounds = np.searchsorted(positives[0], np.arange(count + 1))
        found = [row[row >= 0] for row in documents]
        table = pa.table(
            [
                found,
                [row[: len(kept)] for row, kept in zip(scores, found, strict=True)],
                np.split(positives[1], bounds[1:-1]),
                np.split(positive_scores, bounds[1:-1]),
            ],
            schema=_SCHEMA,
        )
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        atomic_write(self._job.parts[part], stream.getvalue())
        return {"queries": count}

    def _search_vectors(
        self, part: int, positives: tuple[np.ndarray, np.ndarray], excluded: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._job.queries is not None
        assert self._job.documents is not None
        queries = np.load(fetch(self._job.queries.shards[part]), allow_pickle=False)
        shards = self._job.documents.open()
        device = resolve_device("auto")
        found = exact_top_k(queries, shards, self._job.top_k, excluded=Excluded.of(*excluded), device=device)
        return *found, _products(queries, shards, *positives)

    def _search_words(
        self, part: int, positives: tuple[np.ndarray, np.ndarray], excluded: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        texts = pq.ParquetFile(fetch(self._job.query_texts)).read_row_group(part)["text"].to_pylist()
        size = (len(texts), self._job.top_k)
        scores, documents = np.full(size, -np.inf, dtype=np.float32), np.full(size, -1, dtype=np.int64)
        positive_scores = np.zeros(len(positives[0]), dtype=np.float32)
        bounds = [np.searchsorted(side, np.arange(len(texts) + 1)) for side in (positives[0], excluded[0])]
        for query, of_all in enumerate(self._words.scores(texts)):
            mine = slice(*bounds[0][query : query + 2])
            positive_scores[mine] = of_all[positives[1][mine]]
            others = set(excluded[1][slice(*bounds[1][query : query + 2])].tolist())
            best = best_documents(of_all, self._job.top_k, others)
            documents[query, : len(best)], scores[query, : len(best)] = best, of_all[best]
        return scores, documents, positive_scores

    @cached_property
    def _words(self) -> BM25Index:
        return BM25Index(pq.read_table(fetch(self._job.document_texts))["text"].to_pylist())


def write_pairs(collection: Collection, path: Path) -> Path:
    """Store the known positives and the excluded pairs, both in ascending order of queries."""
    order = np.argsort(collection.excluded.queries, kind="stable")
    stream = io.BytesIO()
    np.savez(
        stream,
        allow_pickle=False,
        positive_queries=collection.positives[0],
        positive_documents=collection.positives[1],
        excluded_queries=collection.excluded.queries[order],
        excluded_documents=collection.excluded.documents[order],
    )
    atomic_write(path, stream.getvalue())
    return path


def find_candidates(job: SearchJob, *, actors: int | None, title: str) -> None:
    """Search all parts that are not on disk yet.

    Raises:
        UserError: a worker raised it. What was found stays.
    """
    missing = [{"part": part} for part, path in enumerate(job.parts) if not fetch(path).is_file()]
    for _ in run_items(partial(SearchPart, job), missing, actors=actors, title=title):
        pass


def read_candidates(job: SearchJob) -> Iterator[Candidates]:
    """Yield the candidates of every query in order."""
    for path in job.parts:
        columns = [column.combine_chunks() for column in pq.read_table(fetch(path)).columns]
        for row in range(len(columns[0])):
            documents, scores, positives, positive_scores = (
                column[row].values.to_numpy() for column in columns
            )
            calibrated = job.queries is not None
            yield Candidates(documents, scores, positives, positive_scores, calibrated)


class PairScores:
    """Scores that a dense teacher gives to any query and documents of a collection."""

    def __init__(self, queries: VectorJob, documents: VectorJob):
        self._sides = [
            (shards, np.cumsum([0, *map(len, shards)])) for shards in (queries.open(), documents.open())
        ]

    def __call__(self, query: int, documents: Sequence[int]) -> list[float]:
        """Inner products, in the order of the documents."""
        (query_D,), document_ND = self._vectors(0, [query]), self._vectors(1, documents)
        return [float(vector_D @ query_D) for vector_D in document_ND]

    def _vectors(self, side: int, positions: Sequence[int]) -> list[np.ndarray]:
        shards, starts = self._sides[side]
        places = np.searchsorted(starts, positions, side="right") - 1
        return [
            shards[shard][position - starts[shard]] for shard, position in zip(places, positions, strict=True)
        ]


def _between(
    queries: np.ndarray, documents: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the queries from `start` to `stop`, with queries counted from `start`."""
    first, last = np.searchsorted(queries, [start, stop])
    return queries[first:last] - start, documents[first:last]


def _products(
    query_QD: np.ndarray, shards: Sequence[np.ndarray], queries: np.ndarray, documents: np.ndarray
) -> np.ndarray:
    """Score of each (query, document) pair."""
    scores = np.empty(len(queries), dtype=np.float32)
    ends = np.cumsum([len(shard) for shard in shards])
    shard_of = np.searchsorted(ends, documents, side="right")
    for shard in np.unique(shard_of):
        pairs = np.flatnonzero(shard_of == shard)
        vectors = shards[shard][documents[pairs] - (ends[shard] - len(shards[shard]))]
        scores[pairs] = (query_QD[queries[pairs]] * vectors).sum(axis=1)
    return scores

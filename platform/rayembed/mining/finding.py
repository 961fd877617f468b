"""The search for candidates on Ray: by vectors, slice by slice of the documents, or by words.

Shapes: Q queries, D width, K candidates of a query.
"""

import io
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.device import resolve_device
from rayembed.common.paths import atomic_directory, atomic_write, fetch, remove
from rayembed.common.ray_cluster import connect
from rayembed.common.ray_work import pool_resources, run_items
from rayembed.data.bm25 import BM25Index, best_documents
from rayembed.mining.candidates import RECALL, SCHEMA, SearchJob
from rayembed.mining.collection import Collection
from rayembed.mining.excluded import Excluded
from rayembed.mining.search import exact_top_k, merged
from rayembed.mining.teachers import SHARD_ROWS

_COMPARED = 256  # queries of an approximate search that are searched exactly too, to measure its recall
_ROUNDING = 1e-5  # by which two libraries may differ in a score
_ROUND_BYTES = 2**30  # of query vectors and results that an actor holds


def find_candidates(job: SearchJob, *, actors: int | None, title: str) -> None:
    """Search all parts that are not on disk yet.

    Raises:
        UserError: a worker raised it. What was found stays.
    """
    missing = [part for part, path in enumerate(job.parts) if not fetch(path).is_file()]
    if missing and job.documents is not None:
        _search_vectors(job, missing, actors, title)
    else:
        if missing and not fetch(job.words).is_dir():
            build = partial(run_items, partial(IndexWords, job), [{}], title=f"{title}, index of words")
            deque(build(actors=actors, gpus=False, progress=False), 0)
        parts = [{"part": part} for part in missing]
        deque(run_items(partial(SearchWords, job), parts, actors=actors, gpus=False, title=title), 0)


def _search_vectors(job: SearchJob, missing: list[int], actors: int | None, title: str) -> None:
    """Each actor reads its slice of the documents once for each round of queries; then parts are merged."""
    assert job.documents is not None
    slices, gpus = 1, job.approximation is None
    if actors != 0:
        connect()
        slices, _ = pool_resources(len(job.documents.shards), actors, gpus=gpus)
    cut = _Slices.of(job, slices)
    searches = [
        {"round": turn, "slice": index}
        for turn, parts in enumerate(cut.rounds)
        for index in range(len(cut.slices))
        if any(part in missing and not fetch(cut.found(job, part)[index]).is_file() for part in parts)
    ]
    deque(run_items(partial(SearchSlice, job, cut), searches, actors=actors, gpus=gpus, title=title), 0)
    merges = [{"part": part} for part in missing]
    options: dict[str, Any] = {"actors": actors, "gpus": False, "title": f"{title}, merging"}
    deque(run_items(partial(MergePart, job, cut), merges, **options), 0)
    remove(cut.found(job, 0)[0].parent)


def write_pairs(collection: Collection, path: Path) -> Path:
    """Store the known positives, in ascending order of queries, and what is excluded."""
    excluded = collection.excluded
    _save_arrays(
        path,
        positive_queries=collection.positives[0],
        positive_documents=collection.positives[1],
        queries=excluded.queries,
        documents=excluded.documents,
        asked=np.stack(excluded.asked),
        held=np.stack(excluded.held),
    )
    return path


class _Pairs:
    """Known positives and excluded pairs of a job, cut to ranges of its queries and documents."""

    def __init__(self, job: SearchJob):
        self._job = job
        with np.load(fetch(job.pairs), allow_pickle=False) as pairs:
            self._positives = pairs["positive_queries"], pairs["positive_documents"]
            asked, held = tuple(pairs["asked"]), tuple(pairs["held"])
            self._excluded = Excluded(pairs["queries"], pairs["documents"], asked, held)
        self._starts = _starts(job.query_texts)

    def sizes(self, parts: range) -> list[int]:
        """Queries of each part."""
        return np.diff(self._starts[parts.start : parts.stop + 1]).tolist()

    def positives(self, parts: range) -> tuple[np.ndarray, np.ndarray]:
        """Queries, counted from the first of these parts, and their known positives."""
        return _between(*self._positives, *self._starts[[parts.start, parts.stop]])

    def excluded(self, parts: range) -> Excluded:
        """What these queries, counted from the first of these parts, never get."""
        return self._excluded.of_queries(np.arange(*self._starts[[parts.start, parts.stop]]))

    def write(
        self,
        part: int,
        scores: np.ndarray,
        documents: np.ndarray,
        positive_scores: np.ndarray,
        recall: tuple[int, int] = (0, 0),
    ) -> None:
        """Store a part's candidates (Q, K), the scores of its known positives, and what `RECALL` says."""
        positives = self.positives(range(part, part + 1))
        bounds = np.searchsorted(positives[0], np.arange(len(documents) + 1))
        found = [row[row >= 0] for row in documents]
        table = pa.table(
            [
                found,
                [row[: len(kept)] for row, kept in zip(scores, found, strict=True)],
                np.split(positives[1], bounds[1:-1]),
                np.split(positive_scores, bounds[1:-1]),
            ],
            schema=SCHEMA.with_metadata({RECALL: json.dumps(recall)}),
        )
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        atomic_write(self._job.parts[part], stream.getvalue())


@dataclass(frozen=True)
class _Slices:
    """How a search over vectors is cut: every slice of documents is read once for each round of queries.

    Of 5 parts of queries, rounds of 2, and 7 shards of documents, 3 slices:
        rounds 0-2, 2-4, 4-5   slices 0-3, 3-5, 5-7   nine items, each leaves what it found for its parts

    Attributes:
        rounds: parts of queries whose vectors and results are in memory together.
        slices: shards of documents that an item streams past them.
    """

    rounds: list[range]
    slices: list[range]

    @classmethod
    def of(cls, job: SearchJob, slices: int) -> "_Slices":
        assert job.queries is not None
        assert job.documents is not None
        [first] = job.queries.open(slice(1))
        bytes_of_part = SHARD_ROWS * (4 * first.shape[1] + 12 * job.top_k)
        parts, together = len(job.parts), max(1, _ROUND_BYTES // bytes_of_part)
        shards = len(job.documents.shards)
        bounds = np.linspace(0, shards, min(slices, shards) + 1).astype(int).tolist()
        return cls(
            [range(start, min(start + together, parts)) for start in range(0, parts, together)],
            [range(*pair) for pair in pairwise(bounds)],
        )

    def found(self, job: SearchJob, part: int) -> list[Path]:
        """Where what was found for a part is kept, slice by slice, until it is merged."""
        folder = job.parts[part].parent / f"in-{len(self.slices)}-slices"
        return [folder / f"{part:05d}-{index}.npz" for index in range(len(self.slices))]

    def index(self, job: SearchJob, number: int) -> Path:
        """Where the approximate index of a slice is kept until all rounds are searched."""
        return self.found(job, 0)[0].parent / f"{number}.faiss"


class SearchSlice:
    """Searches a round of queries in a slice of the documents; an actor's worker."""

    def __init__(self, job: SearchJob, cut: _Slices):
        self._job, self._cut, self._pairs = job, cut, _Pairs(job)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Search round `item["round"]` in slice `item["slice"]`."""
        assert self._job.queries is not None
        assert self._job.documents is not None
        parts, mine = self._cut.rounds[item["round"]], self._cut.slices[item["slice"]]
        start, stop = _starts(self._job.document_texts)[[mine.start, mine.stop]]
        shards = self._job.documents.open(slice(mine.start, mine.stop))
        queries = np.concatenate(self._job.queries.open(slice(parts.start, parts.stop)))
        never, positives = self._pairs.excluded(parts).of_documents(start, stop), self._pairs.positives(parts)
        sizes = self._pairs.sizes(parts)
        if self._job.approximation is None:
            compared = np.empty(0, dtype=np.int64)
            found = exact = exact_top_k(
                queries, shards, self._job.top_k, excluded=never, device=resolve_device("auto")
            )
        else:
            compared = _compared(sizes, len(self._job.parts))
            index = self._job.approximation.open(self._cut.index(self._job, item["slice"]), shards)
            found = self._job.approximation.top_k(index, queries, self._job.top_k, excluded=never)
            exact = exact_top_k(
                queries[compared], shards, self._job.top_k, excluded=never.of_queries(compared)
            )
        here = np.flatnonzero((positives[1] >= start) & (positives[1] < stop))
        products = _products(queries, shards, positives[0][here], positives[1][here] - start)
        first = 0
        for part, size in zip(parts, sizes, strict=True):
            before = np.searchsorted(positives[0], first)
            own = slice(*np.searchsorted(positives[0][here], [first, first + size]))
            tried = slice(*np.searchsorted(compared, [first, first + size]))
            _save_arrays(
                self._cut.found(self._job, part)[item["slice"]],
                scores=found[0][first : first + size],
                documents=_shifted(found[1][first : first + size], start),
                compared=compared[tried] - first,
                exact_scores=exact[0][tried],
                exact_documents=_shifted(exact[1][tried], start),
                positives=here[own] - before,
                positive_scores=products[own],
            )
            first += size
        return {"queries": len(queries)}


class MergePart:
    """Merges what the slices of the documents have for one part of the queries; an actor's worker."""

    def __init__(self, job: SearchJob, cut: _Slices):
        self._job, self._cut, self._pairs = job, cut, _Pairs(job)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Merge part `item["part"]`."""
        part = item["part"]
        best: list[tuple[np.ndarray, np.ndarray]] = []  # of the search, and the exact ones
        compared = np.empty(0, dtype=np.int64)
        positive_scores = np.zeros(len(self._pairs.positives(range(part, part + 1))[0]), dtype=np.float32)
        for path in self._cut.found(self._job, part):
            with np.load(fetch(path), allow_pickle=False) as found:
                mine = [
                    (found["scores"], found["documents"]),
                    (found["exact_scores"], found["exact_documents"]),
                ]
                compared = found["compared"]
                positive_scores[found["positives"]] = found["positive_scores"]
            best = [merged(*pair, self._job.top_k) for pair in zip(best, mine, strict=True)] if best else mine
        (scores, documents), (exact_scores, exact) = best
        # A document that scores as high as the last exact result is as right as it: many may be equal.
        least = np.where(exact >= 0, exact_scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        hits, all_of = (scores[compared] >= least - _ROUNDING).sum(axis=1), (exact >= 0).sum(axis=1)
        recall = int(np.minimum(hits, all_of).sum()), int(all_of.sum())
        self._pairs.write(part, scores, documents, positive_scores, recall)
        return {}


class IndexWords:
    """Builds the BM25 index that the workers of a node share; an actor's worker."""

    def __init__(self, job: SearchJob):
        self._job = job

    def __call__(self, _: dict[str, Any]) -> dict[str, Any]:
        """Read the documents shard by shard and write the index."""
        stored = pq.ParquetFile(fetch(self._job.document_texts))
        shards = map(stored.read_row_group, range(stored.num_row_groups))
        index = BM25Index(text for shard in shards for text in shard["text"].to_pylist())
        with atomic_directory(self._job.words) as temporary:
            index.save(temporary)
        return {}


class SearchWords:
    """Finds the candidates of one part of the queries by BM25; an actor's worker."""

    def __init__(self, job: SearchJob):
        self._job, self._pairs = job, _Pairs(job)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Search part `item["part"]`."""
        part = item["part"]
        own = range(part, part + 1)
        found = self._search(part, self._pairs.positives(own), self._pairs.excluded(own))
        self._pairs.write(part, *found)
        return {}

    def _search(
        self, part: int, positives: tuple[np.ndarray, np.ndarray], excluded: Excluded
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        texts = pq.ParquetFile(fetch(self._job.query_texts)).read_row_group(part)["text"].to_pylist()
        size = (len(texts), self._job.top_k)
        scores, documents = np.full(size, -np.inf, dtype=np.float32), np.full(size, -1, dtype=np.int64)
        positive_scores = np.zeros(len(positives[0]), dtype=np.float32)
        bounds, never = np.searchsorted(positives[0], np.arange(len(texts) + 1)), excluded.finder()
        for query, of_all in enumerate(self._words.scores(texts)):
            mine = slice(*bounds[query : query + 2])
            positive_scores[mine] = of_all[positives[1][mine]]
            best = best_documents(of_all, self._job.top_k, never(query))
            documents[query, : len(best)], scores[query, : len(best)] = best, of_all[best]
        return scores, documents, positive_scores

    @cached_property
    def _words(self) -> BM25Index:
        return BM25Index.open(fetch(self._job.words))


def _compared(sizes: Sequence[int], parts: int) -> np.ndarray:
    """Queries that are searched exactly too, as many of each of `parts` parts, spread over it.

    With 4 of each part, and parts of 7 and 2 queries: 0, 2, 4, 6 of the first and both of the second, 7, 8.
    """
    each, first = max(1, _COMPARED // parts), np.cumsum([0, *sizes])
    return np.concatenate(
        [
            start + np.linspace(0, size - 1, min(each, size)).astype(np.int64)
            for start, size in zip(first[:-1], sizes, strict=True)
        ]
    )


def _shifted(documents: np.ndarray, start: int) -> np.ndarray:
    """Positions in all documents of positions in those from `start` on; -1 stays."""
    return np.where(documents < 0, -1, documents + start)


def _starts(texts: Path) -> np.ndarray:
    """Position of the first text of each shard, and the number of all texts."""
    metadata = pq.ParquetFile(fetch(texts)).metadata
    sizes = [metadata.row_group(shard).num_rows for shard in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes])


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    atomic_write(path, stream.getvalue())


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

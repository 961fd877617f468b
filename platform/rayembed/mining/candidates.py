"""Candidates of every query with their scores, on disk, so that filters can be run again without encoding.

Part 3 holds the queries of shard 3. Columns: `documents` and `scores`, best first; `positives` and
`positive_scores` of the query's known positives. Documents are positions in the collection. Three queries:

    documents  scores      positives  positive_scores
    [7, 2]     [0.9, 0.4]  [1]        [0.8]             7 outscores the positive: a filter will reject it
    [0]        [0.3]       [4, 5]     [0.7, 0.2]        top_k was 2, one candidate was excluded
    []         []          [3]        [0.0]             BM25 found no shared word
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.paths import fetch, file_digest
from rayembed.data.bm25 import REVISION
from rayembed.data.plan import fingerprint
from rayembed.mining.approximate import Approximation
from rayembed.mining.config import Anchor
from rayembed.mining.teachers import VectorJob

RECALL = b"recall"  # metadata of a part: [found by an approximate search, all of them], of the exact results

SCHEMA = pa.schema(
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
        outside = len(self.scores) >= top_k and anchor < self.scores[top_k - 1]
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
        approximation: how vectors are searched; None: exactly.
    """

    query_texts: Path
    document_texts: Path
    queries: VectorJob | None
    documents: VectorJob | None
    pairs: Path
    top_k: int
    folder: Path
    approximation: Approximation | None = None

    @cached_property
    def parts(self) -> list[Path]:
        """Files in order, whether or not they are there yet."""
        made_from: dict[str, object] = {
            "vectors": [job.folder.name if job else None for job in (self.queries, self.documents)],
            "texts": [file_digest(self.query_texts), file_digest(self.document_texts)],
            "pairs": file_digest(self.pairs),
            "top_k": self.top_k,
        }
        if self.approximation is not None:
            made_from["approximation"] = asdict(self.approximation)
        folder = self.folder / f"candidates-{fingerprint(made_from)[:12]}"
        return [
            folder / f"{index:05d}.parquet"
            for index in range(pq.ParquetFile(self.query_texts).num_row_groups)
        ]

    @cached_property
    def words(self) -> Path:
        """Folder of the BM25 index of the documents."""
        made_from = {"texts": file_digest(self.document_texts), "words": REVISION}
        return self.folder / f"words-{fingerprint(made_from)[:12]}"


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


def measured_recall(job: SearchJob) -> float | None:
    """Share of the exact search's results that an approximate one has found, of a sample of the queries.

    None: nothing was to be found, or the search is exact.
    """
    counts = np.zeros(2, dtype=np.int64)
    for path in job.parts:
        counts += json.loads((pq.read_schema(fetch(path)).metadata or {}).get(RECALL, b"[0, 0]"))
    return float(counts[0] / counts[1]) if counts[1] else None


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

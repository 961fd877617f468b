"""Approximate search with faiss: faster than the exact one, and it misses some of the best documents.

- `ivf`: documents lie in `nlist` clusters; a query looks into the `nprobe` clusters with the nearest centres.
- `hnsw`: documents are a graph of neighbours; a query walks it and remembers the `efSearch` best.

Shapes: Q queries, D width, K results, N documents of one index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_file, fetch
from rayembed.mining.excluded import Excluded
from rayembed.mining.search import QUERY_BLOCK

_LEAST_OF_CLUSTER = 39  # documents; faiss warns below
_TRAINED_ON = 64  # documents of each cluster that its centre is learned from
_MOST_SPARE = 9  # times the wanted results are looked for in addition, as some may be excluded
_NEIGHBOURS = 32  # of a document in the graph, faiss' usual value


@dataclass(frozen=True)
class Approximation:
    """How an index is searched; names are those of faiss.

    Attributes:
        nprobe: clusters that a query looks into; None: one of 32, but at least 16. All of them find what
            the exact search finds.
        efSearch: documents that a query remembers on its way; None: twice the wanted results.
    """

    index: Literal["ivf", "hnsw"]
    nprobe: int | None = None
    efSearch: int | None = None

    def open(self, path: Path, shards: Sequence[np.ndarray]) -> Any:
        """The faiss index of all rows of the shards (N, D) at `path`, which is written if it is missing."""
        faiss = load_faiss()
        if not fetch(path).is_file():
            with atomic_file(path) as temporary:
                faiss.write_index(self._build(shards), str(temporary))
        return faiss.read_index(str(fetch(path)))

    def _build(self, shards: Sequence[np.ndarray]) -> Any:
        faiss = load_faiss()
        nlist = cluster_count(sum(map(len, shards)))
        layout = f"IVF{nlist},Flat" if self.index == "ivf" else f"HNSW{_NEIGHBOURS},Flat"
        index = faiss.index_factory(shards[0].shape[1], layout, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.cp.min_points_per_centroid = 1  # or it warns of a slice that is one cluster
            step = max(1, sum(map(len, shards)) // (_TRAINED_ON * nlist))
            index.train(np.concatenate([shard[::step] for shard in shards]))
        for shard_ND in shards:
            index.add(np.ascontiguousarray(shard_ND))
        return index

    def top_k(
        self, index: Any, query_QD: np.ndarray, count: int, *, excluded: Excluded
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `exact_top_k` gives, as far as the index finds it.

        Args:
            index: of `open`.
            query_QD: vectors of the queries.
            count: K.
            excluded: pairs that are no results.
        """
        scores = np.full((len(query_QD), count), -np.inf, dtype=np.float32)
        positions = np.full((len(query_QD), count), -1, dtype=np.int64)
        left_out = np.minimum(excluded.counts(len(query_QD)), _MOST_SPARE * count)
        # A block looks for as many more as one of its queries needs.
        order = np.argsort(left_out, kind="stable")
        for start in range(0, len(order), QUERY_BLOCK):
            rows = order[start : start + QUERY_BLOCK]
            wanted = min(count + int(left_out[rows].max()), index.ntotal)
            found_scores, found = index.search(query_QD[rows], wanted, params=self._effort(index, wanted))
            never = (found < 0) | excluded.covers(rows, found)
            found_scores[never], found[never] = -np.inf, -1
            best = np.lexsort((found, -found_scores), axis=1)[:, :count]
            scores[rows, : best.shape[1]] = np.take_along_axis(found_scores, best, axis=1)
            positions[rows, : best.shape[1]] = np.take_along_axis(found, best, axis=1)
        return scores, positions

    def _effort(self, index: Any, wanted: int) -> Any:
        faiss = load_faiss()
        if self.index == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self.efSearch or 2 * wanted, wanted))
        return faiss.SearchParametersIVF(nprobe=self.nprobe or max(16, index.nlist // 32))


def cluster_count(documents: int) -> int:
    """`nlist`: 4 times the square root of the documents, as faiss advises; 1, which is exact, for too few."""
    return max(1, min(round(4 * documents**0.5), documents // _LEAST_OF_CLUSTER))


def load_faiss() -> Any:
    """The package; its stubs do not fit it, so it has no type.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ResourceError(
            f"index needs faiss ({error}); run `pip install 'rayembed[faiss]'`, or set index: exact"
        ) from error

"""Documents that are never candidates of a query: single ones, and all that share a cluster with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Pairs = tuple[np.ndarray, np.ndarray]
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Excluded:
    """Pairs that are never results. Those of clusters are not listed: a cluster of m rows has m * m of them.

    Three queries, of which 0 and 1 share cluster 5 with documents 7 and 9:

        queries, documents    (2, 4)
        asked                 (5, 0), (5, 1)
        held                  (7, 5), (9, 5)
        all pairs             (2, 4), (0, 7), (1, 7), (0, 9), (1, 9)

    Attributes:
        queries, documents: single pairs, in ascending order of documents.
        asked: cluster and query, in ascending order of clusters.
        held: document and cluster, in ascending order of documents.
    """

    queries: np.ndarray
    documents: np.ndarray
    asked: Pairs = (_NONE, _NONE)
    held: Pairs = (_NONE, _NONE)

    @classmethod
    def of(
        cls,
        queries: np.ndarray,
        documents: np.ndarray,
        asked: Pairs = (_NONE, _NONE),
        held: Pairs = (_NONE, _NONE),
    ) -> "Excluded":
        """Pairs in any order."""
        order = np.argsort(documents, kind="stable")
        return cls(queries[order], documents[order], _ascending(asked), _ascending(held))

    def of_queries(self, chosen: np.ndarray) -> "Excluded":
        """Those of chosen queries, in ascending order, counted among these."""
        single, asking = np.isin(self.queries, chosen), np.isin(self.asked[1], chosen)
        asked = self.asked[0][asking], np.searchsorted(chosen, self.asked[1][asking])
        return Excluded(
            np.searchsorted(chosen, self.queries[single]), self.documents[single], asked, self.held
        )

    def of_documents(self, start: int, stop: int) -> "Excluded":
        """Those of the documents from `start` to `stop`, counted from `start`."""
        single = slice(*np.searchsorted(self.documents, [start, stop]))
        holding = slice(*np.searchsorted(self.held[0], [start, stop]))
        held = self.held[0][holding] - start, self.held[1][holding]
        return Excluded(self.queries[single], self.documents[single] - start, self.asked, held)

    def pairs(self) -> Pairs:
        """All queries and documents; a pair may come twice."""
        first, counts = _places(self.asked[0], self.held[1])
        asking = self.asked[1][_ranges(first, counts)]
        return (
            np.concatenate([self.queries, asking]),
            np.concatenate([self.documents, np.repeat(self.held[0], counts)]),
        )

    def counts(self, queries: int) -> np.ndarray:
        """How many documents each of so many queries never gets, or a few more."""
        _, sizes = _places(np.sort(self.held[1]), self.asked[0])
        of_clusters = np.bincount(self.asked[1], weights=sizes, minlength=queries).astype(np.int64)
        return np.bincount(self.queries, minlength=queries) + of_clusters

    def covers(self, queries_Q: np.ndarray, documents_QK: np.ndarray) -> np.ndarray:
        """Which (Q, K) of some queries' documents they never get."""
        size = int(max(documents_QK.max(initial=0), self.documents.max(initial=0))) + 1
        single = np.isin(queries_Q[:, None] * size + documents_QK, self.queries * size + self.documents)
        first, counts = _places(self.held[0], documents_QK.ravel())
        place = np.repeat(np.arange(documents_QK.size), counts)
        size = int(self.held[1].max(initial=0)) + 1
        codes = queries_Q[place // documents_QK.shape[1]] * size + self.held[1][_ranges(first, counts)]
        known = self.asked[0] < size
        shared = np.isin(codes, (self.asked[1] * size + self.asked[0])[known])
        single.reshape(-1)[place[shared]] = True
        return single

    def finder(self) -> Callable[[int], np.ndarray]:
        """A function from a query to all documents that it never gets."""
        singles = _ascending((self.queries, self.documents))
        asked, held = _ascending(self.asked[::-1]), _ascending(self.held[::-1])

        def of_query(query: int) -> np.ndarray:
            mine, clusters = (
                pairs[1][slice(*np.searchsorted(pairs[0], [query, query + 1]))] for pairs in (singles, asked)
            )
            return np.unique(np.concatenate([mine, held[1][_ranges(*_places(held[0], clusters))]]))

        return of_query


def _ascending(pairs: Pairs) -> Pairs:
    order = np.argsort(pairs[0], kind="stable")
    return pairs[0][order], pairs[1][order]


def _places(ascending: np.ndarray, values: np.ndarray) -> Pairs:
    """Where each value begins, and how often it is there."""
    first = np.searchsorted(ascending, values, side="left")
    return first, np.searchsorted(ascending, values, side="right") - first


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions first, first + 1, ..., `counts` of them, one range after the other."""
    return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())

"""The window of candidates, widened for queries whose rows the filters leave short of negatives.

With `top_k` 100 and two queries, of which the filters leave the second too few:

    window 1    queries 0, 1    100 candidates each
    window 2    query 1         200 candidates, in place of its first 100

Windows double until every row has its negatives, all documents are candidates (half of them where rows are
filled at random), or `MOST_WINDOWS` were tried: where a filter can keep nothing, as where a positive scores
below zero, no window is wide enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayembed.mining.candidates import Candidates, SearchJob, read_candidates

MOST_WINDOWS = 5  # the last is sixteen times as wide as the first


@dataclass(frozen=True)
class Window:
    """Searches of some queries.

    Attributes:
        top_k: candidates of a query.
        queries: positions in the collection, ascending; each window has some of the one before.
        searches: teacher -> its search of these queries.
    """

    top_k: int
    queries: np.ndarray
    searches: Mapping[str, SearchJob]

    def candidates(self) -> Iterator[tuple[Candidates, ...]]:
        """Candidates of each of its queries in order, one item a teacher."""
        return zip(*map(read_candidates, self.searches.values()), strict=True)


def widest(windows: Sequence[Window]) -> Iterator[tuple[Candidates, ...]]:
    """Candidates of all queries in order, each from the last window that has it."""
    streams = [(iter(window.queries.tolist()), window.candidates()) for window in windows[1:]]
    waiting = [next(queries, None) for queries, _ in streams]
    for query, found in zip(windows[0].queries.tolist(), windows[0].candidates(), strict=True):
        for number, (queries, candidates) in enumerate(streams):
            if waiting[number] == query:
                found, waiting[number] = next(candidates), next(queries, None)
        yield found

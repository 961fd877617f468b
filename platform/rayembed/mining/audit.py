"""What the teachers' scores say about the candidates and the chosen negatives, gathered query by query."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rayembed.mining.candidates import Candidates
from rayembed.mining.config import SourceMining
from rayembed.mining.selection import Choice, best_positive, passes

SHARE_EDGES = np.linspace(0.0, 1.5, 31)
"""Edges of the histograms: score of a candidate as a share of the score of its query's best positive."""
MOST_POSITIVES = 8  # of one query that are compared with each other


@dataclass
class _Teacher:
    """Sums of one teacher."""

    candidates: np.ndarray = field(default_factory=lambda: np.zeros(len(SHARE_EDGES) - 1, dtype=np.int64))
    mined: np.ndarray = field(default_factory=lambda: np.zeros(len(SHARE_EDGES) - 1, dtype=np.int64))
    positives_first: int = 0
    known_tried: int = 0
    known_passed: int = 0


class Audit:
    """Gathers what a report shows of one source.

    Args:
        teachers: their names, in the order of the candidates.
        settings: of the source.
        known: query -> further right documents that mining did not see, both as positions.
    """

    def __init__(
        self, teachers: Sequence[str], settings: SourceMining, known: Mapping[int, Set[int]] | None = None
    ):
        self._settings = settings
        self._known = known
        self._teachers = {name: _Teacher() for name in teachers}
        self._overlap = dict.fromkeys(combinations(teachers, 2), 0.0)
        self._rows = 0
        self._false = {"unfiltered": [0, 0], "chosen": [0, 0]}

    def add(self, query: int, found: Sequence[Candidates], choice: Choice) -> None:
        """Count one row: its query's candidates and what was chosen."""
        self._rows += 1
        mined = np.array(choice.mined, dtype=np.int64)
        for sums, one in zip(self._teachers.values(), found, strict=True):
            positive = best_positive(one)
            if positive > 0:
                shares = np.clip(one.scores / positive, 0.0, SHARE_EDGES[-1] - 1e-6)
                sums.candidates += np.histogram(shares, SHARE_EDGES)[0]
                sums.mined += np.histogram(shares[np.isin(one.documents, mined)], SHARE_EDGES)[0]
            sums.positives_first += bool(len(one.scores) == 0 or positive > one.scores[0])
            self._try_known(sums, one)
        best = {
            name: set(one.documents[: self._settings.negatives_per_query].tolist())
            for name, one in zip(self._teachers, found, strict=True)
        }
        for first, second in self._overlap:
            either = best[first] | best[second]
            self._overlap[first, second] += len(best[first] & best[second]) / len(either) if either else 1.0
        if self._known is not None and query in self._known:
            count = self._settings.negatives_per_query
            unfiltered = [document for one in found for document in one.documents[:count].tolist()]
            for name, documents in (("unfiltered", unfiltered), ("chosen", choice.mined)):
                self._false[name][0] += sum(document in self._known[query] for document in documents)
                self._false[name][1] += len(documents)

    def _try_known(self, sums: _Teacher, one: Candidates) -> None:
        """Ask the filters about one known positive as if only another one were known."""
        scores = one.positive_scores[:MOST_POSITIVES]
        for anchor, other in combinations(range(len(scores)), 2):
            for known, hidden in ((anchor, other), (other, anchor)):
                rank = int((one.scores >= scores[hidden]).sum())
                if rank >= self._settings.top_k:
                    continue  # the search would not have found it
                merged = np.insert(one.scores, rank, scores[hidden])
                sums.known_tried += 1
                sums.known_passed += bool(passes(merged, float(scores[known]), self._settings.filters)[rank])

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers; a share that nothing was counted for is None."""
        return {
            "share_edges": [round(edge, 3) for edge in SHARE_EDGES.tolist()],
            "teachers": {
                name: {
                    "positive_above_all_candidates": _share(sums.positives_first, self._rows),
                    "candidates_by_share_of_positive": sums.candidates.tolist(),
                    "mined_by_share_of_positive": sums.mined.tolist(),
                    "known_positives_that_pass": _share(sums.known_passed, sums.known_tried),
                    "known_positives_tried": sums.known_tried,
                }
                for name, sums in self._teachers.items()
            },
            "teacher_overlap": {
                f"{first} | {second}": _share(total, self._rows)
                for (first, second), total in self._overlap.items()
            },
            "false_negatives": {
                name: _share(*counts) for name, counts in self._false.items() if self._known is not None
            },
        }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None

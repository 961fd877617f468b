"""What a mining run chose, counted, and what the teachers' scores say about it, row by row."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from rayembed.mining.candidates import Candidates
from rayembed.mining.config import SourceMining
from rayembed.mining.filters import passes

SHARE_EDGES = np.linspace(0.0, 1.5, 31)
"""Edges of the histograms: score of a candidate as a share of the score of its query's best positive."""
MOST_POSITIVES = 8  # of one query that are compared with each other


@dataclass(frozen=True)
class Choice:
    """What was chosen for a row.

    Attributes:
        mined: hard negatives, best first, as positions in the collection.
        ranks: rank of each among the candidates of the teacher that brought it in, the best being 1.
        fills: random documents that complete them.
        candidates: distinct documents that the teachers found.
        rejected: those that a filter rejected.
        short: whether the row has fewer mined negatives than were wanted.
    """

    mined: list[int]
    ranks: list[int]
    fills: list[int]
    candidates: int
    rejected: int
    short: bool


@dataclass(frozen=True)
class MiningReport:
    """Counts over the rows of one source.

    Attributes:
        rows: rows of the source.
        documents: distinct documents that were searched.
        candidates: documents found for the rows, own positives excluded.
        rejected: candidates that scored too near to the positive.
        mined: hard negatives that were kept.
        rows_short: rows with fewer hard negatives than asked for.
        random_fills: random documents that completed those rows.
        mean_rank: mean rank of the kept negatives among the candidates, the best being 1; NaN without any.
    """

    rows: int
    documents: int
    candidates: int
    rejected: int
    mined: int
    rows_short: int
    random_fills: int
    mean_rank: float

    @classmethod
    def of(cls, choices: Sequence[Choice], documents: int) -> "MiningReport":
        """Sum up the rows of a source."""
        ranks = [rank for choice in choices for rank in choice.ranks]
        return cls(
            rows=len(choices),
            documents=documents,
            candidates=sum(choice.candidates for choice in choices),
            rejected=sum(choice.rejected for choice in choices),
            mined=len(ranks),
            rows_short=sum(choice.short for choice in choices),
            random_fills=sum(len(choice.fills) for choice in choices),
            mean_rank=fmean(ranks) if ranks else math.nan,
        )

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{self.rows} rows, {self.documents} documents: kept {self.mined} hard negatives "
            f"(mean rank {self.mean_rank:.1f}), rejected {self.rejected} of {self.candidates} candidates as "
            f"likely positives, filled {self.rows_short} short rows with {self.random_fills} random documents"
        )


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
            positive = one.anchor("best")
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


def markdown(name: str, report: MiningReport, negatives_per_query: int, audit: dict[str, Any]) -> str:
    """The report of one source for a person.

    Args:
        name: of the source.
        report: counts.
        negatives_per_query: that every row was to have.
        audit: `Audit.summary()`.
    """
    lines = [
        f"# Hard negatives of {name}",
        "",
        "| | |",
        "|---|---|",
        f"| rows | {report.rows:,} |",
        f"| documents searched | {report.documents:,} |",
        f"| negatives mined | {report.mined:,}, mean rank {report.mean_rank:.1f} |",
        f"| candidates rejected as likely right | {report.rejected:,} of {report.candidates:,} |",
        f"| rows short of {negatives_per_query} mined negatives | {report.rows_short:,} |",
        f"| random documents that complete them | {report.random_fills:,} |",
    ]
    for top_k, queries in audit["widened"].items():
        lines.append(f"| queries that needed {top_k:,} candidates | {queries:,} |")
    for which, share in audit["false_negatives"].items():
        meaning = "of the first candidates" if which == "unfiltered" else "of the chosen negatives"
        lines.append(f"| {meaning} are known to be right | {_percent(share)} |")
    if audit["rescoring"]["rescored"]:
        rescored, share = audit["rescoring"]["rescored"], audit["rescoring"]["share"]
        lines.append(f"| of {rescored:,} rescored candidates right after all | {_percent(share)} |")
    if dropped := audit["round_trip"]["dropped"]:
        lines.append(f"| rows dropped, as no teacher finds their positive again | {dropped:,} |")
    for teacher, recall in audit["recall"].items():
        lines.append(f"| of the exact results that the index finds, {teacher} | {_percent(recall)} |")
    for pair, overlap in audit["teacher_overlap"].items():
        teachers = pair.replace(" | ", " and ")
        lines.append(
            f"| overlap of the best {negatives_per_query} of {teachers} (Jaccard) | {_percent(overlap)} |"
        )
    for teacher, sums in audit["teachers"].items():
        lines += _teacher_lines(teacher, sums, audit["share_edges"])
    return "\n".join(lines) + "\n"


def _teacher_lines(teacher: str, sums: Mapping[str, Any], edges: Sequence[float]) -> list[str]:
    first, passed = sums["positive_above_all_candidates"], sums["known_positives_that_pass"]
    return [
        "",
        f"## Teacher {teacher}",
        "",
        f"The positive scores above all candidates in {_percent(first)} of the rows. Of "
        f"{sums['known_positives_tried']:,} known positives, each tried as if only another one of its "
        f"query were known, the filters let {_percent(passed)} pass.",
        "",
        "Scores as a share of the positive's:",
        "",
        "```",
        *_histogram(edges, sums["candidates_by_share_of_positive"], sums["mined_by_share_of_positive"]),
        "```",
    ]


def _histogram(edges: Sequence[float], candidates: Sequence[int], mined: Sequence[int]) -> list[str]:
    """One line a bin from the first to the last that is not empty."""
    filled = [position for position, count in enumerate(candidates) if count]
    if not filled:
        return ["no positive scores above zero"]
    largest = max(candidates)
    lines = [f"{'share':>11} {'candidates':>11} {'mined':>9}"]
    for position in range(filled[0], filled[-1] + 1):
        bar = "#" * round(40 * candidates[position] / largest)
        span = f"{edges[position]:.2f}-{edges[position + 1]:.2f}"
        lines.append(f"{span:>11} {candidates[position]:>11,} {mined[position]:>9,} {bar}".rstrip())
    return lines


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None

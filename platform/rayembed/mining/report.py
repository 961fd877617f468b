"""What a mining run did."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class RowOutcome:
    """What was found for one row: candidates, rejected ones, ranks of the kept ones, random documents, and
    whether it got fewer mined negatives than asked for.
    """

    candidates: int
    rejected: int
    ranks: list[int]
    random_fills: int
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
    def of(cls, outcomes: Sequence[RowOutcome], documents: int) -> "MiningReport":
        """Sum up the rows of a source."""
        ranks = [rank for outcome in outcomes for rank in outcome.ranks]
        return cls(
            rows=len(outcomes),
            documents=documents,
            candidates=sum(outcome.candidates for outcome in outcomes),
            rejected=sum(outcome.rejected for outcome in outcomes),
            mined=len(ranks),
            rows_short=sum(outcome.short for outcome in outcomes),
            random_fills=sum(outcome.random_fills for outcome in outcomes),
            mean_rank=fmean(ranks) if ranks else math.nan,
        )

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{self.rows} rows, {self.documents} documents: kept {self.mined} hard negatives "
            f"(mean rank {self.mean_rank:.1f}), rejected {self.rejected} of {self.candidates} candidates as "
            f"likely positives, filled {self.rows_short} short rows with {self.random_fills} random documents"
        )


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
    for which, share in audit["false_negatives"].items():
        meaning = "of the first candidates" if which == "unfiltered" else "of the chosen negatives"
        lines.append(f"| {meaning} are known to be right | {_percent(share)} |")
    if audit["second_look"]["looked_at"]:
        looked_at, share = audit["second_look"]["looked_at"], audit["second_look"]["share"]
        lines.append(
            f"| of {looked_at:,} candidates in the second look right after all | {_percent(share)} |"
        )
    for pair, overlap in audit["teacher_overlap"].items():
        teachers = pair.replace(" | ", " and ")
        lines.append(
            f"| overlap of the best {negatives_per_query} of {teachers} (Jaccard) | {_percent(overlap)} |"
        )
    for teacher, sums in audit["teachers"].items():
        first, passed = sums["positive_above_all_candidates"], sums["known_positives_that_pass"]
        lines += [
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
            *_histogram(
                audit["share_edges"],
                sums["candidates_by_share_of_positive"],
                sums["mined_by_share_of_positive"],
            ),
            "```",
        ]
    return "\n".join(lines) + "\n"


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

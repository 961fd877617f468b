"""What a mining run did."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class RowOutcome:
    """What was found for one row: candidates, rejected ones, ranks of the kept ones, random documents."""

    candidates: int
    rejected: int
    ranks: list[int]
    random_fills: int


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
            rows_short=sum(outcome.random_fills > 0 for outcome in outcomes),
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

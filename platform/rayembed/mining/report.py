"""What a mining run did."""

from dataclasses import dataclass


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

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{self.rows} rows, {self.documents} documents: kept {self.mined} hard negatives "
            f"(mean rank {self.mean_rank:.1f}), rejected {self.rejected} of {self.candidates} candidates as "
            f"likely positives; {self.rows_short} rows were short and got {self.random_fills} random documents"
        )

"""What a synthesis run made, counted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.paths import atomic_file
from rayembed.synthesis.answers import Usage


@dataclass(frozen=True)
class KindReport:
    """Counts of one kind."""

    kind: str
    tasks: int
    rows: int
    answers: int
    misfits: dict[str, int]
    exact_duplicates: int
    near_duplicates: int
    prompt_tokens: int
    answer_tokens: int
    rows_per_answer: float
    not_found: int = 0  # queries of passages that the search did not find again

    @classmethod
    def of(
        cls,
        kind: str,
        *,
        tasks: int,
        rows: int,
        exact_duplicates: int,
        near_duplicates: int,
        usage: Usage,
        not_found: int = 0,
    ) -> "KindReport":
        """Report of a kind."""
        return cls(
            kind=kind,
            tasks=tasks,
            rows=rows,
            answers=usage.answers,
            misfits=dict(usage.misfits.most_common()),
            exact_duplicates=exact_duplicates,
            near_duplicates=near_duplicates,
            prompt_tokens=usage.prompt_tokens,
            answer_tokens=usage.answer_tokens,
            rows_per_answer=round(rows / usage.answers, 4) if usage.answers else 0.0,
            not_found=not_found,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for the log."""
        lost = f"{self.not_found} queries do not find their passage; " if self.not_found else ""
        return (
            f"{self.rows} rows of {self.tasks} tasks from {self.answers} answers; "
            f"{sum(self.misfits.values())} did not fit, {self.exact_duplicates} exact and "
            f"{self.near_duplicates} near duplicates dropped; "
            f"{lost}{self.prompt_tokens + self.answer_tokens} tokens"
        )


@dataclass(frozen=True)
class SynthesizedSource:
    """Result of one kind: its Parquet file and what it took."""

    path: Path
    report: KindReport


def write_parquet(table: pa.Table, path: Path) -> Path:
    """Write rows; the file is whole or not there."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def markdown(name: str, reports: Sequence[KindReport]) -> str:
    """The report of all kinds for a person."""
    lines = [
        f"# Synthetic rows: {name}",
        "",
        "| kind | tasks | rows | answers | rows per answer | duplicates, exact and near | not found "
        "| tokens, prompt and answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in reports:
        lines.append(
            f"| {one.kind} | {one.tasks:,} | {one.rows:,} | {one.answers:,} | {one.rows_per_answer:.2f} "
            f"| {one.exact_duplicates:,}, {one.near_duplicates:,} | {one.not_found:,} "
            f"| {one.prompt_tokens:,}, {one.answer_tokens:,} |"
        )
    misfits = [(one.kind, reason, count) for one in reports for reason, count in one.misfits.items()]
    if misfits:
        lines += ["", "| kind | why an answer did not fit | answers |", "|---|---|---|"]
        lines += [f"| {kind} | {reason} | {count:,} |" for kind, reason, count in misfits]
    return "\n".join(lines) + "\n"

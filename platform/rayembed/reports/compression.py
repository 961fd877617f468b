"""The pages of a compression study and of smaller vectors: what fewer bytes cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write
from rayembed.reports.charts import Line, line_chart
from rayembed.reports.page import Chart, aligned, render


def write_page(name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write index.html and return its path.

    Args:
        name: of the study.
        rows: of its table, the reference first.
        folder: where to write.
    """
    charts = []
    for retraining in dict.fromkeys(row["retraining"] for row in rows):
        # Cells with smaller vectors are as large on the disk as those with whole ones.
        shown = [
            row for row in rows if row["retraining"] == retraining and row["vectors"] == rows[0]["vectors"]
        ]
        methods = list(dict.fromkeys(row["method"] for row in shown))
        lines = [
            Line(
                [(row["disk_bytes"] / 1e6, row["score"] - rows[0]["score"])],
                methods.index(row["method"]),
            )
            for row in shown
        ]
        title = "Not trained again" if retraining == "none" else f"Trained again: {retraining}"
        note = "Difference of the score to the first row, over megabytes on disk."
        if lines:
            charts.append(Chart(title, note, line_chart(title, lines, []), methods))
    whole = [row for row in rows if (row["method"], row["retraining"]) == (rows[0]["method"], "none")]
    formats = list(dict.fromkeys(row["weights"] for row in whole))
    if len({row["vector_bytes"] for row in whole}) > 1:
        lines = [
            Line([(row["vector_bytes"], row["score"] - rows[0]["score"])], formats.index(row["weights"]))
            for row in whole
        ]
        note = "Difference of the score to the first row, over bytes of a vector in an index, by weights."
        charts.append(Chart("Smaller vectors", note, line_chart("Smaller vectors", lines, []), formats))
    atomic_write(folder / "index.html", render("compression.html", name=name, rows=rows, charts=charts))
    return folder / "index.html"


def write_vectors_page(name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write vectors.html and return its path.

    Args:
        name: of the model.
        rows: of `compression.vectors.score_vectors`.
        folder: where to write.
    """
    formats = list(dict.fromkeys(row["vectors"].rpartition("-")[2] for row in rows))
    lines = [
        Line([(row["vector_bytes"], row["score"])], formats.index(row["vectors"].rpartition("-")[2]))
        for row in rows
    ]
    note = "Score over bytes of a vector in an index, by number format."
    charts = [Chart("Smaller vectors", note, line_chart("Smaller vectors", lines, []), formats)]
    atomic_write(folder / "vectors.html", render("vectors.html", name=name, rows=rows, charts=charts))
    return folder / "vectors.html"


def vectors_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compression.vectors.score_vectors` as aligned text."""
    lines = [("vectors", "bytes a vector", "score", "difference (95 % interval)", "p", "texts/s")]
    for row in rows:
        difference = p = ""
        if "p" in row:
            difference = f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            p = f"{row['p']:.3f}"
        rate = "" if row["texts_per_second"] is None else f"{row['texts_per_second']:.0f}"
        lines.append((row["vectors"], str(row["vector_bytes"]), f"{row['score']:.4f}", difference, p, rate))
    return aligned(lines)

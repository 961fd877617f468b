"""The page of a compression study: what smaller files cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write
from rayembed.reports.charts import Line, line_chart
from rayembed.reports.page import Chart, render


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

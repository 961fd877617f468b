"""What a report is written with: a page of one file from a template, and tables as text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from rayembed.common.progress import duration
from rayembed.common.templates import templates
from rayembed.reports.charts import PALETTE_SIZE


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines with columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


@dataclass(frozen=True)
class Chart:
    """A figure with its caption; names of the legend have the colours of the palette in order."""

    title: str
    note: str
    figure: Markup
    legend: Sequence[str] = ()


def render(template: str, **content: Any) -> str:
    """The page of a template; texts in `content` are escaped.

    Args:
        template: file in this package that extends layout.html.
        content: what the template shows.
    """
    environment = templates("rayembed.reports", html=True)
    environment.filters["duration"] = duration
    environment.globals["palette_size"] = PALETTE_SIZE
    return environment.get_template(template).render(
        date=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(resources.files("rayembed.reports").joinpath("report.css").read_text()),
        **content,
    )

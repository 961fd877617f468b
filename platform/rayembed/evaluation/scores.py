"""The score table: one row a task, one column a model."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mteb
import numpy as np

from rayembed.common.paths import atomic_write, fetch
from rayembed.evaluation.builtin_tasks import TASKS

SCORES_FILE = "scores.json"
COLUMNS = {"bm25": "BM25", "base": "untrained", "trained": "trained"}

_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")

Scores = dict[str, dict[str, Any]]


def score_table(metrics: Mapping[str, str], columns: Mapping[str, Mapping[str, float]]) -> Scores:
    """Map task -> {"metric", "base", "bm25", "trained"}; None where a model was not scored.

    Args:
        metrics: task -> name of its main score, in the order of the table.
        columns: column -> task -> score.
    """
    return {
        task: {"metric": metric}
        | {column: columns.get(column, {}).get(task) for column in ("base", "bm25", "trained")}
        for task, metric in metrics.items()
    }


def task_type(task: str) -> str:
    """mteb's type of a task; tasks that a user declared are together, as nothing else is known of them by
    name."""
    if task in TASKS:
        return TASKS[task].type
    try:
        return str(mteb.get_task(task).metadata.type)
    except KeyError:
        return "own"


def write_scores(scores: Scores, output: Path) -> Path:
    """Write scores.json into `output` and return its path."""
    path = output / SCORES_FILE
    atomic_write(path, json.dumps({"tasks": scores}, indent=2) + "\n")
    return path


def read_scores(output: Path) -> Scores:
    """Scores that `write_scores` wrote into `output`."""
    return json.loads(fetch(output / SCORES_FILE).read_text())["tasks"]


def mean_rows(
    scores: Scores, columns: Collection[str] = tuple(COLUMNS)
) -> list[tuple[str, dict[str, float | None]]]:
    """Means over the tasks of each type with more than one task, then over all tasks.

    A column has a mean only where it has a score on every task of the group, so that columns can be compared.
    """
    groups: dict[str, list[str]] = {}
    for task in scores:
        kind = task_type(task)
        readable = kind if kind.isupper() else _WORD_START.sub(" ", kind).lower()
        groups.setdefault(readable, []).append(task)
    named = {f"mean of {len(members)} {kind} tasks": members for kind, members in groups.items()}
    named[f"mean of all {len(scores)}"] = list(scores)
    return [
        (name, {column: _mean(scores, members, column) for column in columns})
        for name, members in named.items()
        if len(members) > 1
    ]


def format_table(scores: Scores, columns: Mapping[str, str] = COLUMNS) -> str:
    """The table as aligned text; `columns` maps keys of a row to their titles."""
    rows = [[task, row["metric"], *_cells(row, columns)] for task, row in scores.items()]
    means = [[name, "", *_cells(values, columns)] for name, values in mean_rows(scores, columns)]
    header = ["task", "metric", *columns.values(), "change"]
    widths = [max(len(row[column]) for row in [header, *rows, *means]) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [header, rule, *rows, *([rule, *means] if means else [])]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Mapping[str, Any], columns: Collection[str]) -> list[str]:
    values = [row[column] for column in columns]
    base, trained = row["base"], row["trained"]
    change = "-" if base is None or trained is None else f"{round(trained - base, 3) + 0:+.3f}"
    return [*("-" if value is None else f"{value:.3f}" for value in values), change]


def _mean(scores: Scores, tasks: list[str], column: str) -> float | None:
    values = [scores[task][column] for task in tasks]
    return None if None in values else float(np.mean(values))

"""The page of an evaluated model: <output>/<model>/index.html, scores.md and scores.csv."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write
from rayembed.evaluation.comparison import ModelComparison, compare, interval, overall_sentence
from rayembed.evaluation.published import PUBLISHED, PUBLISHED_TASKS, TASKS_PUBLISHED_ON
from rayembed.evaluation.results import ModelRecord, TaskRecord
from rayembed.reports.charts import bars, radar
from rayembed.reports.page import Chart, render

_SHOWN_PUBLISHED = 3


def write_evaluation_report(record: ModelRecord, folder: Path, others: Sequence[ModelRecord] = ()) -> Path:
    """Write the page, the Markdown and the table of one model and return the page's path.

    Args:
        record: the model.
        folder: where to write.
        others: models of the same evaluation to compare with, such as the untrained one.
    """
    rows = [_task_row(task, record.benchmark) for task in record.tasks]
    categories = _category_rows(record)
    comparisons = [compare(other, record) for other in others if _share_tasks(other, record)]
    atomic_write(folder / "scores.csv", _csv(rows))
    atomic_write(folder / "scores.md", _markdown(record, rows, categories, comparisons))
    page = render(
        "evaluation.html",
        record=record,
        mean=record.categories()["mean"],
        categories=categories,
        rows=rows,
        comparisons=comparisons,
        charts=_charts(record, others),
    )
    atomic_write(folder / "index.html", page)
    return folder / "index.html"


def _task_row(task: TaskRecord, benchmark: str | None) -> dict[str, Any]:
    bounds = interval(list(task.samples.values()))
    published = {
        model: scores.get(task.name) if benchmark in TASKS_PUBLISHED_ON else None
        for model, scores in PUBLISHED_TASKS.items()
    }
    sides = task.instructions or {}
    return {
        "task": task.name,
        "type": task.type,
        "metric": task.metric,
        "score": task.score,
        "low": bounds[0] if bounds else None,
        "high": bounds[1] if bounds else None,
        "overlap": task.overlap or "",
        "query_instruction": sides.get("query") or "",
        "document_instruction": sides.get("document") or "",
        "instructions_from": sides.get("origin") or "",
        "revision": task.revision,
        **{model: score / 100 if score is not None else None for model, score in published.items()},
    }


def _category_rows(record: ModelRecord) -> list[tuple[str, dict[str, float | None]]]:
    """(model, category -> score) of this model and of the published ones on the same benchmark version."""
    own: dict[str, float | None] = dict(record.categories())
    rows = [(record.label, own)]
    for model, scores in PUBLISHED.get(record.benchmark or "", {}).items():
        rows.append((model, {name: scores[name] / 100 if name in scores else None for name in own}))
    return rows


def _charts(record: ModelRecord, others: Sequence[ModelRecord]) -> list[Chart]:
    models = [record, *others]
    names = [task.name for task in record.tasks]
    by_model: dict[str, Sequence[float | None]] = {}
    for model in models:
        scores = {task.name: task.score for task in model.tasks}
        by_model[model.label] = [scores.get(name) for name in names]
    figure = bars("Main scores", names, by_model)
    charts = [Chart("Tasks", "main score of each task", figure, list(by_model))]
    axes = [name for name in record.categories() if name != "mean"]
    if len(axes) >= 3:
        series: dict[str, Sequence[float | None]] = {
            model.label: [model.categories().get(axis) for axis in axes] for model in models
        }
        published = PUBLISHED.get(record.benchmark or "", {})
        for name, scores in list(published.items())[:_SHOWN_PUBLISHED]:
            series[name] = [scores[axis] / 100 if axis in scores else None for axis in axes]
        figure = radar("Mean score by task type", axes, series)
        charts.append(Chart("Task types", "mean of the main scores", figure, list(series)))
    return charts


def _share_tasks(one: ModelRecord, other: ModelRecord) -> bool:
    rows = {(task.name, task.revision) for task in one.tasks}
    return any((task.name, task.revision) in rows for task in other.tasks)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _markdown(
    record: ModelRecord,
    rows: Sequence[Mapping[str, Any]],
    categories: Sequence[tuple[str, Mapping[str, float | None]]],
    comparisons: Sequence[ModelComparison],
) -> str:
    names = list(categories[0][1])
    lines = [
        f"# {record.label}",
        "",
        f"{record.benchmark or 'Single tasks'}, weights {record.digest[:16]}",
        "",
    ]
    lines += ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for model, means in categories:
        lines.append(f"| {model} | " + " | ".join(_cell(means[name]) for name in names) + " |")
    lines += ["", "| task | metric | score | 95 % interval | training data |", "|---|---|---|---|---|"]
    for row in rows:
        bounds = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] is not None else "none"
        lines.append(
            f"| {row['task']} | {row['metric']} | {_cell(row['score'])} | {bounds} | {row['overlap']} |"
        )
    for comparison in comparisons:
        if comparison.overall is not None:
            lines += ["", f"Against {comparison.first.label}, {overall_sentence(comparison.overall)}."]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

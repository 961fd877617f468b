"""Two runs or more side by side: a table for the terminal and a page of their curves."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write, location_of
from rayembed.common.progress import duration
from rayembed.reports import metrics
from rayembed.reports.charts import Line, bars, line_chart
from rayembed.reports.page import Chart, aligned, render
from rayembed.reports.runs import Run

_MISSING = "-"
_NOT_COMPARED = ("name", "output", "models_directory")
_LAST_STEPS = 20

Table = dict[str, list[str]]  # heading of a row -> one cell a run


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Write the page that shows the curves of runs in the same charts.

    Args:
        runs: at least two, each with logged steps.
        path: HTML file to write.
    """
    page = render(
        "compare.html",
        names=labels(runs),
        figures=figures(runs),
        charts=list(_charts(runs)),
        differences=recipe_differences(runs),
    )
    atomic_write(path, page)


def format_comparison(runs: Sequence[Run]) -> str:
    """Key numbers of the runs and the settings in which they differ, as aligned text."""
    differing = {f"  {key}": cells for key, cells in recipe_differences(runs).items()}
    rows: Table = {"": labels(runs), **figures(runs)}
    if differing:
        rows |= {"settings that differ:": [""] * len(runs)} | differing
    return aligned([[heading, *cells] for heading, cells in rows.items()])


def labels(runs: Sequence[Run]) -> list[str]:
    """Names of the runs; folders where two share a name."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else location_of(run.folder) for run in runs]


def figures(runs: Sequence[Run]) -> Table:
    """Key numbers, one row each."""
    rows: Table = {
        "status": [run.status for run in runs],
        "steps": [f"{run.step} of {run.steps}" for run in runs],
        f"loss, last {_LAST_STEPS} steps": [
            f"{_last(metrics.curve(run.records, 'loss')):.4f}" for run in runs
        ],
        f"accuracy, last {_LAST_STEPS} steps": [_accuracy_cell(run) for run in runs],
        "score": [f"{run.best.value:.3f} ({run.best.of})" if run.best else _MISSING for run in runs],
        "tokens": [f"{run.tokens:,}" for run in runs],
        "tokens a second": [f"{run.tokens / max(run.seconds, 1e-9):,.0f}" for run in runs],
        "time in steps": [duration(run.seconds) for run in runs],
    }
    return {heading: cells for heading, cells in rows.items() if set(cells) != {_MISSING}}


def recipe_differences(runs: Sequence[Run]) -> Table:
    """Dotted keys of the recipes whose values differ, one cell a run."""
    flat = [dict(_flattened(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe if key not in _NOT_COMPARED)
    cells = {key: [str(recipe.get(key, _MISSING)) for recipe in flat] for key in keys}
    return {key: values for key, values in cells.items() if len(set(values)) > 1}


def accuracy(records: Sequence[Mapping[str, Any]]) -> metrics.Points:
    """(step, share of queries that score their positive highest), over all sources of the batch."""
    points = []
    for record in records:
        counted = [values for values in record["sources"].values() if values.get("accuracy") is not None]
        rows = sum(values.get("rows", 1) for values in counted)
        if rows:
            right = sum(values["accuracy"] * values.get("rows", 1) for values in counted)
            points.append((record["step"], right / rows))
    return points


def _charts(runs: Sequence[Run]) -> Iterator[Chart]:
    def training(name: str) -> Callable[[Run], metrics.Points]:
        return lambda run: metrics.curve(run.records, name)

    yield from _smoothed_chart(runs, "Loss", "mean over the batch", training("loss"))
    accuracy_note = "share of queries that score their positive highest"
    yield from _smoothed_chart(runs, "Training accuracy", accuracy_note, lambda run: accuracy(run.records))
    yield from _smoothed_chart(runs, "Throughput", "tokens a second", training("tokens_per_second"))
    validated = [metrics.curve(run.validations, "score") for run in runs]
    if any(validated):
        lines = [Line(points, color=color) for color, points in enumerate(validated) if points]
        figure = line_chart("Score of checkpoints", lines, ())
        yield Chart("Score", "mean over the validation tasks", figure, labels(runs))
    tasks = list(dict.fromkeys(task for run in runs for task in run.scores))
    if tasks:
        series = {
            label: [run.scores.get(task) for task in tasks]
            for label, run in zip(labels(runs), runs, strict=True)
        }
        yield Chart("Tasks", "of the finished models", bars("Main scores", tasks, series), labels(runs))


def _smoothed_chart(
    runs: Sequence[Run], title: str, note: str, points_of: Callable[[Run], metrics.Points]
) -> Iterator[Chart]:
    """A chart of raw and smoothed curves, where a run has any points."""
    lines = []
    for color, run in enumerate(runs):
        points = points_of(run)
        smooth = metrics.by_stage(points, metrics.stage_spans(run.records), metrics.smoothed)
        lines += [Line(points, color=color, faint=True)] if points else []
        lines += [Line(part, color=color) for part in smooth if part]
    if lines:
        yield Chart(title, note, line_chart(title, lines, _common_spans(runs)), labels(runs))


def _common_spans(runs: Sequence[Run]) -> list[metrics.StageSpan]:
    """Stages to mark in a chart: those of the longest run, if all have the same ones in the same places."""
    spans = [metrics.stage_spans(run.records) for run in runs]
    longest = max(spans, key=lambda one: one[-1].last)
    starts = [[(span.name, span.first) for span in one] for one in spans]
    same = all(one == starts[spans.index(longest)][: len(one)] for one in starts)
    return longest if same else []


def _accuracy_cell(run: Run) -> str:
    points = accuracy(run.records)
    return f"{_last(points):.3f}" if points else _MISSING


def _last(points: metrics.Points) -> float:
    values = [value for _, value in points[-_LAST_STEPS:]]
    return sum(values) / len(values)


def _flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _flattened(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value

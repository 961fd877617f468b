"""Two evaluated models side by side: per task, per category and over all, with paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rayembed.common.errors import DataError
from rayembed.evaluation.results import ModelRecord, TaskRecord

_SEED = 0
_RESAMPLES = 2000
_AT_A_TIME = 100  # resamples in memory
_TWO_SIDED_80 = 1.960 + 0.842  # quantiles of the normal distribution: level 5 %, power 80 %
_LEAST = 3


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two models on the same samples.

    Attributes:
        difference: mean of second minus first.
        low, high: 95 % bootstrap interval of the difference.
        p_value: two-sided paired permutation test of the mean difference.
        samples: how many pairs.
        detectable: smallest true difference that such a test would see 8 times of 10, at 5 %.
    """

    difference: float
    low: float
    high: float
    p_value: float
    samples: int
    detectable: float


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean; None for fewer than three values."""
    if len(values) < _LEAST:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        batch=_AT_A_TIME,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired(first: Sequence[float], second: Sequence[float]) -> Comparison | None:
    """Compare samples of equal meaning and order; None for fewer than three pairs."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    bounds = interval(differences.tolist())
    if bounds is None:
        return None
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        batch=_AT_A_TIME,
        rng=np.random.default_rng(_SEED),
    )
    detectable = _TWO_SIDED_80 * differences.std(ddof=1) / np.sqrt(len(differences))
    return Comparison(
        float(differences.mean()), *bounds, float(test.pvalue), len(differences), float(detectable)
    )


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for that many tests at once, in the order given."""
    order = np.argsort(p_values, kind="stable")
    result = np.empty(len(p_values))
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        result[position] = largest
    return result.tolist()


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one task.

    Attributes:
        task: of the first model.
        first, second: scores.
        test: over the samples of the task; None where it has none.
        adjusted_p: Holm-corrected for all tasks that have a test.
    """

    task: TaskRecord
    first: float
    second: float
    test: Comparison | None
    adjusted_p: float | None


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the tasks that both were scored on.

    Attributes:
        first, second: the models.
        tasks: in the order of the first.
        overall: over the scores of the tasks; None for fewer than three.
        left_out: tasks that only one of them has, or that differ in their rows.
    """

    first: ModelRecord
    second: ModelRecord
    tasks: tuple[TaskComparison, ...]
    overall: Comparison | None
    left_out: tuple[str, ...]


def compare(first: ModelRecord, second: ModelRecord) -> ModelComparison:
    """Compare two models on equal rows.

    Raises:
        DataError: they share no task.
    """
    others = {task.name: task for task in second.tasks}
    shared = [
        (task, others[task.name])
        for task in first.tasks
        if task.name in others and task.revision == others[task.name].revision
    ]
    if not shared:
        raise DataError(f"{first.label} and {second.label} were scored on no common task with the same rows")
    tests = [_paired_samples(one, other) for one, other in shared]
    corrected = iter(adjusted([test.p_value for test in tests if test is not None]))
    names = {one.name for one, _ in shared}
    left_out = [task.name for task in (*first.tasks, *second.tasks) if task.name not in names]
    return ModelComparison(
        first,
        second,
        tuple(
            TaskComparison(one, one.score, other.score, test, next(corrected) if test is not None else None)
            for (one, other), test in zip(shared, tests, strict=True)
        ),
        paired([one.score for one, _ in shared], [other.score for _, other in shared]),
        tuple(dict.fromkeys(left_out)),
    )


def format_comparison(result: ModelComparison) -> str:
    """The comparison as aligned text."""
    header = f"{'task':34} {result.first.label:>10} {result.second.label:>10}"
    lines = [f"{header} {'change':>8}  95 % interval     p (Holm)  seen 8 of 10"]
    for row in result.tasks:
        line = f"{row.task.name:34} {row.first:10.3f} {row.second:10.3f} {row.second - row.first:+8.3f}"
        if row.test is not None:
            line += f"  {row.test.low:+.3f} to {row.test.high:+.3f}  {row.adjusted_p:8.3f}"
            line += f"  {row.test.detectable:12.3f}"
        else:
            line += "  none: this score has no rows to pair"
        lines.append(line)
    if result.overall is not None:
        lines.append(overall_sentence(result.overall))
    if result.left_out:
        lines.append(f"left out, not scored on the same rows by both: {', '.join(result.left_out)}")
    return "\n".join(lines)


def overall_sentence(test: Comparison) -> str:
    """The comparison over all tasks in words."""
    return (
        f"over {test.samples} tasks: {test.difference:+.4f}, 95 % interval {test.low:+.4f} to "
        f"{test.high:+.4f}, p = {test.p_value:.3f} (paired permutation test); a difference of "
        f"{test.detectable:.4f} would be seen 8 times of 10"
    )


def _paired_samples(one: TaskRecord, other: TaskRecord) -> Comparison | None:
    names = [name for name in one.samples if name in other.samples]
    return paired([one.samples[name] for name in names], [other.samples[name] for name in names])

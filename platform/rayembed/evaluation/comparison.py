"""Two evaluated models side by side: per task, per category and over all, with paired tests."""

from dataclasses import dataclass

from rayembed.common.errors import DataError
from rayembed.evaluation.record import ModelRecord, TaskRecord
from rayembed.evaluation.statistics import Comparison, adjusted, paired


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one task.

    Attributes:
        task: of the first model.
        first, second: scores.
        test: over the samples of the task; None where mteb keeps none.
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
    lines = [f"{header} {'change':>8}  95 % interval     p (Holm)"]
    for row in result.tasks:
        line = f"{row.task.name:34} {row.first:10.3f} {row.second:10.3f} {row.second - row.first:+8.3f}"
        if row.test is not None:
            line += f"  {row.test.low:+.3f} to {row.test.high:+.3f}  {row.adjusted_p:.3f}"
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
        f"{test.high:+.4f}, p = {test.p_value:.3f} (paired permutation test)"
    )


def _paired_samples(one: TaskRecord, other: TaskRecord) -> Comparison | None:
    names = [name for name in one.samples if name in other.samples]
    return paired([one.samples[name] for name in names], [other.samples[name] for name in names])

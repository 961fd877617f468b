"""Benchmarks by name: a benchmark is a list of task names."""

import difflib
from collections.abc import Iterable, Sequence

from rayembed.errors import UserError
from rayembed.evaluation.tasks import TASKS

QUICKSTART = "rayembed-quickstart"

BENCHMARKS: dict[str, tuple[str, ...]] = {QUICKSTART: tuple(TASKS)}


def task_names(benchmark: str = QUICKSTART, tasks: Sequence[str] | None = None) -> list[str]:
    """Names of the tasks to run: `tasks` where given, else all of `benchmark`.

    Raises:
        UserError: the benchmark or a task is unknown; the message offers the nearest names.
    """
    if tasks is None:
        if benchmark not in BENCHMARKS:
            raise UserError(_unknown("benchmark", benchmark, BENCHMARKS))
        return list(BENCHMARKS[benchmark])
    if not tasks:
        raise UserError("the list of tasks is empty; name at least one task or leave the option out")
    for task in tasks:
        if task not in TASKS:
            raise UserError(_unknown("task", task, TASKS))
    return list(dict.fromkeys(tasks))


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    by_folded_name = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), by_folded_name, n=3, cutoff=0.5)
    offered = [by_folded_name[match] for match in nearest]
    if offered:
        return f"unknown {what} {name!r}; did you mean {' or '.join(offered)}?"
    return f"unknown {what} {name!r}; known: {', '.join(by_folded_name.values())}"

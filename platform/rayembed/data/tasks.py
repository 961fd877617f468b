"""The same function over many jobs: by this process, or by a Ray Data job in a cluster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rayembed.common.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Outcome:
    """What a task gave. A user's mistake travels as a value: as an exception Ray would wrap and retry it."""

    result: Any = None
    mistake: UserError | None = None


def run_tasks(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yield the results in the order of the jobs, each as soon as it and all before it are there.

    One job runs in this process; several are tasks of a Ray Data job, for which a local Ray is started where
    none is connected.

    Raises:
        UserError: what a job raised. What other jobs wrote stays.
    """
    if len(jobs) == 1:
        yield function(jobs[0])
        return
    # Commands and small sources do without Ray and do not wait for it.
    import ray.data

    from rayembed.common.ray_cluster import connect

    def task(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"outcome": _Outcome(function(jobs[row["item"]]))}
        except UserError as error:
            return {"outcome": _Outcome(mistake=error)}

    connect()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    positions = ray.data.from_items(list(range(len(jobs))), override_num_blocks=len(jobs))
    for row in positions.map(task).iter_rows():
        outcome = row["outcome"]
        if outcome.mistake is not None:
            raise outcome.mistake
        yield outcome.result

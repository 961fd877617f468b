"""Score checkpoints on a few tasks while training goes on.

`start_gate` is called after a checkpoint has been written, and `finished_gates` now and then; neither waits.
The scoring runs as a Ray task on CPUs or a GPU that training does not hold.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rayembed.common.errors import UserError

logger = logging.getLogger(__name__)

GATE_TASKS = ("SimLex999", "VaderTweets", "DocstringReranking")

Export = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Gate:
    """A scoring that was started.

    Attributes:
        step: of training.
        checkpoint: its folder, which must stay until the gate is done.
        reference: the Ray task.
    """

    step: int
    checkpoint: Path
    reference: Any


def start_gate(
    checkpoint: Path,
    step: int,
    *,
    output: Path,
    data_dir: Path,
    tasks: Sequence[str] = GATE_TASKS,
    task_files: Sequence[Path] = (),
    export: Export | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Gate:
    """Start scoring a checkpoint and return at once; call it from one rank.

    Args:
        checkpoint: a model folder on storage that all nodes see, or what `export` takes.
        step: of training, to label the scores.
        output: folder of the results; each step has its own below it.
        data_dir: folder of the built sources.
        tasks: names of tasks; small ones, so that the gate keeps up with the checkpoints.
        task_files: YAML files of own tasks.
        export: writes the model of `checkpoint` to a new folder, where it is none yet; runs in the Ray task.
        num_cpus, num_gpus: what the Ray task asks for, beside what training holds.

    Raises:
        UserError: a task is unknown.
    """
    check_tasks(tasks, task_files, data_dir)
    remote = ray.remote(_score).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)
    reference = remote.remote(
        checkpoint, output / f"step-{step}", data_dir, tuple(tasks), tuple(task_files), export
    )
    logger.info("gate of step %d started on %s", step, ", ".join(tasks))
    return Gate(step, checkpoint, reference)


def check_tasks(tasks: Sequence[str], task_files: Sequence[Path], data_dir: Path) -> None:
    """Refuse tasks that cannot be scored.

    Raises:
        UserError: a task is unknown.
        ConfigError: a task file is not valid.
    """
    from rayembed.evaluation.catalogue import Catalogue  # mteb takes seconds to import

    Catalogue(data_dir, tuple(task_files)).select(tasks=tasks)


def finished_gates(gates: Sequence[Gate]) -> tuple[dict[int, dict[str, float]], list[Gate]]:
    """Scores of the gates that are done, by step, and the gates that still run; a failed one is logged."""
    if not gates:
        return {}, []
    done, _ = ray.wait([gate.reference for gate in gates], num_returns=len(gates), timeout=0)
    scores: dict[int, dict[str, float]] = {}
    for gate in gates:
        if gate.reference in done:
            try:
                scores[gate.step] = ray.get(gate.reference)
            except (ray.exceptions.RayError, UserError) as error:
                logger.warning("the gate of step %d failed: %s", gate.step, error)
    return scores, [gate for gate in gates if gate.reference not in done]


def _score(
    checkpoint: Path,
    output: Path,
    data_dir: Path,
    tasks: tuple[str, ...],
    task_files: tuple[Path, ...],
    export: Export | None,
) -> dict[str, float]:
    from rayembed.evaluation.run import run

    with tempfile.TemporaryDirectory(prefix="rayembed-gate-") as folder:
        model = checkpoint
        if export is not None:
            model = Path(folder) / "model"
            export(checkpoint, model)
        scores = run(model, output=output, data_dir=data_dir, tasks=tasks, task_files=task_files, actors=0)
    return {task: row["trained"] for task, row in scores.items()}

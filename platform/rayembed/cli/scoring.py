"""How checkpoints are scored while training goes on: by the gate of `rayembed.evaluation`."""

from dataclasses import dataclass
from pathlib import Path

import ray

from rayembed.common.paths import resolve
from rayembed.config import RunConfig, ValidationConfig
from rayembed.evaluation.gate import check_tasks, finished_gates, start_gate
from rayembed.training.validation import Export


@dataclass(frozen=True)
class GateScorer:
    """Scores one checkpoint at a time in a Ray task of its own, so that its end cannot end training.

    Attributes:
        validation: tasks and resources.
        data_dir: folder of the built sources.
        task_files: of own tasks, absolute.
    """

    validation: ValidationConfig
    data_dir: Path
    task_files: tuple[Path, ...]

    def score(self, checkpoint: Path, step: int, *, output: Path, export: Export) -> dict[str, float]:
        """Scores by task; empty when the scoring failed, which is logged."""
        gate = start_gate(
            checkpoint,
            step,
            output=output,
            data_dir=self.data_dir,
            tasks=self.validation.tasks,
            task_files=self.task_files,
            export=export,
            num_cpus=self.validation.cpus,
            num_gpus=self.validation.gpus,
        )
        ray.wait([gate.reference])
        scores, _ = finished_gates([gate])
        return scores.get(step, {})


def scorer_of(config: RunConfig) -> GateScorer | None:
    """The scorer that a recipe asks for, None where it has no validation.

    Raises:
        UserError: a task is unknown, or a file of tasks not valid.
    """
    if config.validation is None:
        return None
    files = tuple(resolve(file) for file in config.validation.task_files)
    data_dir = resolve(config.data.directory)
    check_tasks(config.validation.tasks, files, data_dir)
    return GateScorer(config.validation, data_dir, files)

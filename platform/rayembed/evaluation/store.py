"""Results on disk: <output>/<model label>/<checkpoint digest>/<Task>.json, in mteb's own format."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import mteb
from mteb.results import TaskResult

logger = logging.getLogger(__name__)

_DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation.

    Attributes:
        label: name of its column and folder, such as "trained".
        digest: names its weights; results of other weights are never reused.
        checkpoint: its folder; None is BM25.
    """

    label: str
    digest: str
    checkpoint: Path | None


class ResultStore:
    """One writer's view of the result files under `output`."""

    def __init__(self, output: Path):
        self.output = output

    def path(self, candidate: Candidate, task: str) -> Path:
        """Where the result of `candidate` on `task` is kept."""
        return self.output / candidate.label / candidate.digest[:_DIGEST_CHARACTERS] / f"{task}.json"

    def load(self, candidate: Candidate, task: mteb.AbsTask) -> TaskResult | None:
        """A stored result of the same task revision, or None where the task has to be run (again)."""
        path = self.path(candidate, task.metadata.name)
        if not path.is_file():
            return None
        try:
            result = TaskResult.from_disk(path, load_historic_data=False)
        except ValueError:
            logger.warning("%s is not a complete result; the task is run again", path)
            return None
        if result.dataset_revision != task.metadata.revision or result.get_missing_evaluations(task):
            logger.info("%s is of another revision of the task; the task is run again", path)
            return None
        return result

    def save(self, candidate: Candidate, result: TaskResult) -> None:
        """Write `result` so that a reader never sees a part of it."""
        path = self.path(candidate, result.task_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        result.to_disk(temporary)
        os.replace(temporary, path)

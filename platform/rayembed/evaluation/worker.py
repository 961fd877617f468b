"""What scores a task: the code that runs in an actor, or in this process."""

from pathlib import Path

import torch
from mteb.results import TaskResult

from rayembed.evaluation.bm25 import BM25
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.store import Candidate
from rayembed.evaluation.tasks import load_task
from rayembed.inference.engine import Engine


class Worker:
    """Scores one task at a time and keeps the last model loaded.

    Args:
        data_dir: folder of the built sources.
        threads: processor threads of torch; None leaves torch's choice.
    """

    def __init__(self, data_dir: Path, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.data_dir = data_dir
        self._loaded: tuple[Candidate, EngineEncoder] | None = None

    def ready(self) -> None:
        """Return once the worker is up."""

    def evaluate(self, candidate: Candidate, task: str) -> TaskResult:
        """Score `candidate` on the built-in task named `task`.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            DataError: the source of the task cannot be read.
        """
        model = BM25() if candidate.checkpoint is None else self._encoder(candidate)
        return evaluate_task(model, load_task(task, self.data_dir))

    def _encoder(self, candidate: Candidate) -> EngineEncoder:
        if self._loaded is None or self._loaded[0] != candidate:
            self._loaded = None  # free the previous model before the next one is loaded
            assert candidate.checkpoint is not None
            self._loaded = candidate, EngineEncoder(Engine.load(candidate.checkpoint), candidate.label)
        return self._loaded[1]

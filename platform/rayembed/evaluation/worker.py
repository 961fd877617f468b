"""What does a unit of work: the code that runs in an actor, or in this process."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from mteb.abstasks import AbsTaskRetrieval
from mteb.results import TaskResult

from rayembed.engine.engine import Engine
from rayembed.evaluation.bm25 import BM25
from rayembed.evaluation.catalogue import Catalogue, TaskReference
from rayembed.evaluation.encoder import evaluate_task
from rayembed.evaluation.endpoint import EndpointEngine
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.shards import ShardEncoder, is_searched
from rayembed.evaluation.units import Unit
from rayembed.model.configuration import Precision

_TASKS_IN_MEMORY = 2


@dataclass(frozen=True)
class Setup:
    """What all workers of a run share.

    Attributes:
        catalogue: loads the tasks.
        policy: which instruction each side of a task gets.
        output: folder of the results, where the vectors of shards are kept.
        precision: number format of checkpoints; bf16 lets the batch that a text is in show in its vector.
    """

    catalogue: Catalogue
    policy: InstructionPolicy
    output: Path
    precision: Precision = "auto"


@dataclass(frozen=True)
class Outcome:
    """What a unit gave.

    Attributes:
        result: of a scoring unit; None for a shard, whose vectors are on disk.
        tokens: really encoded.
        seconds: wall time.
    """

    result: TaskResult | None
    tokens: int
    seconds: float


class Worker:
    """Does one unit at a time and keeps the last model and the last tasks loaded.

    Args:
        setup: what all workers share.
        threads: processor threads of torch; None leaves torch's choice.
    """

    def __init__(self, setup: Setup, threads: int | None = None):
        datasets.disable_progress_bars()
        if threads is not None:
            torch.set_num_threads(threads)
        self.setup = setup
        self._loaded: tuple[Candidate, ShardEncoder] | None = None
        self._tasks: OrderedDict[TaskReference, Any] = OrderedDict()

    def ready(self) -> None:
        """Return once the worker is up."""

    def run(self, unit: Unit) -> Outcome:
        """Encode a shard or score a task.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            DataError: the rows of the task cannot be read.
        """
        started = time.monotonic()
        task = self._task(unit.reference)
        if not unit.candidate.encodes:
            return Outcome(evaluate_task(BM25(), task), 0, time.monotonic() - started)
        encoder = self._encoder(unit.candidate)
        before = encoder.tokens
        encoder.attach(task, unit.shards)
        result = None
        if unit.shard is not None:
            encoder.encode_shard(task, unit.shard)
        else:
            result = self._score(encoder, task, unit)
        return Outcome(result, encoder.tokens - before, time.monotonic() - started)

    def _score(self, encoder: ShardEncoder, task: Any, unit: Unit) -> TaskResult:
        searched = [shard for shard in unit.shards if is_searched(task, shard)]
        model = encoder.found(task, searched) if searched else encoder
        return evaluate_task(model, task, encoder.instructions(task.metadata), precision=self.setup.precision)

    def _task(self, reference: TaskReference) -> Any:
        if reference not in self._tasks:
            task = self.setup.catalogue.load(reference)
            task.load_data()
            if isinstance(task, AbsTaskRetrieval):
                task.convert_v1_dataset_format_to_v2(num_proc=None)
            self._tasks[reference] = task
            while len(self._tasks) > _TASKS_IN_MEMORY:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(reference)
        return self._tasks[reference]

    def _encoder(self, candidate: Candidate) -> ShardEncoder:
        if self._loaded is None or self._loaded[0] != candidate:
            self._loaded = None  # free the previous model before the next one is loaded
            engine = load_engine(candidate, self.setup.precision)
            setup = self.setup
            encoder = ShardEncoder(engine, candidate.label, setup.policy, setup.output, setup.precision)
            self._loaded = candidate, encoder
        return self._loaded[1]


def load_engine(candidate: Candidate, precision: Precision) -> Any:
    """The engine of a checkpoint, or the endpoint in the form of one."""
    if candidate.endpoint is not None:
        return EndpointEngine.connect(candidate.endpoint)
    assert candidate.checkpoint is not None
    return Engine.load(candidate.checkpoint, precision=precision)

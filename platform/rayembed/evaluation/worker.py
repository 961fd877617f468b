"""What does a unit of work: the code that runs in an actor, or in this process."""

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from mteb.abstasks import AbsTaskRetrieval
from mteb.models.model_implementations.bm25 import BM25Search, bm25_s
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult

from rayembed.common.errors import ResourceError
from rayembed.common.progress import duration
from rayembed.common.settings import Precision
from rayembed.data.bm25 import K1, REVISION, B, search_terms
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import ReducedEngine, VectorForm
from rayembed.evaluation.catalogue import Catalogue, TaskReference
from rayembed.evaluation.encoder import evaluate_task
from rayembed.evaluation.endpoint import EndpointEngine
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.shards import CachedEngine, ShardEncoder, is_searched
from rayembed.evaluation.units import Unit, UnitQueue

logger = logging.getLogger(__name__)

_TASKS_IN_MEMORY = 2


class BM25Baseline(BM25Search):
    """mteb's own BM25 search model with our terms, which split identifiers: for tasks over code.

    It meets the same corpus, queries and scorer as models, and scores retrieval tasks only.
    """

    mteb_model_meta = ModelMeta.create_empty(
        overwrites={"name": "rayembed/bm25", "revision": REVISION, "modalities": ["text"]}
    )

    def __init__(self) -> None:
        super().__init__(tokenizer=search_terms, freq_threshold=0, k1=K1, b=B)


class RegistryBM25(BM25Search):
    """mteb's published baseline, with stop words and a stemmer by language: for tasks of its registry."""

    mteb_model_meta = bm25_s


BM25_REVISION = f"{REVISION}-mteb-{bm25_s.revision}-on-its-registry"


def check_bm25(references: Iterable[TaskReference]) -> None:
    """Raise ResourceError where a task needs a stemmer that is not installed."""
    if any(reference.origin == "mteb" for reference in references) and find_spec("Stemmer") is None:
        raise ResourceError(
            "BM25 on tasks of mteb's registry needs the package PyStemmer; install it with "
            "`pip install 'rayembed[bm25]'`, or leave out --bm25"
        )


@dataclass(frozen=True)
class EvaluationSetup:
    """What all workers of a run share.

    Attributes:
        catalogue: loads the tasks.
        policy: which instruction each side of a task gets.
        output: folder of the results, where the vectors of shards are kept.
        precision: number format of checkpoints; bf16 lets the batch that a text is in show in its vector.
        vectors: form in which vectors are compared; None: as they are.
        cache: folder that keeps the vectors of checkpoints; None: shards are, until they are scored.
    """

    catalogue: Catalogue
    policy: InstructionPolicy
    output: Path
    precision: Precision = "auto"
    vectors: VectorForm | None = None
    cache: Path | None = None


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


class EvaluationWorker:
    """Does one unit at a time and keeps the last model and the last tasks loaded.

    Args:
        setup: what all workers share.
        threads: processor threads of torch; None leaves torch's choice.
    """

    def __init__(self, setup: EvaluationSetup, threads: int | None = None):
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
            search = RegistryBM25() if unit.reference.origin == "mteb" else BM25Baseline()
            return Outcome(evaluate_task(search, task), 0, time.monotonic() - started)
        encoder = self._encoder(unit.candidate)
        before = encoder.tokens
        # What a searched shard has found is stored; its vectors, of a corpus, are not needed again.
        encoder.attach(task, [shard for shard in unit.shards if not is_searched(task, shard)])
        result = None
        if unit.shard is not None:
            encoder.encode_shard(task, unit.shard)
        else:
            result = self._score(encoder, task, unit)
        return Outcome(result, encoder.tokens - before, time.monotonic() - started)

    def _score(self, encoder: ShardEncoder, task: Any, unit: Unit) -> TaskResult:
        searched = [shard for shard in unit.shards if is_searched(task, shard)]
        model = encoder.found(task, searched) if searched else encoder
        return evaluate_task(model, task, encoder)

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
            if setup.cache is not None and candidate.checkpoint is not None:
                engine = CachedEngine(engine, setup.cache)
            if setup.vectors is not None:
                engine = ReducedEngine(engine, setup.vectors)
            encoder = ShardEncoder(engine, candidate.label, setup.policy, setup.output)
            self._loaded = candidate, encoder
        return self._loaded[1]


def load_engine(candidate: Candidate, precision: Precision) -> Any:
    """The engine of a checkpoint, or the endpoint in the form of one."""
    if candidate.endpoint is not None:
        return EndpointEngine.connect(candidate.endpoint)
    assert candidate.checkpoint is not None
    return Engine.load(candidate.checkpoint, precision=precision)


class UnitProgress:
    """Logs what is done, at which measured rate, and about how long the rest will take.

    Args:
        queue: where the units come from.
        actors: how many of them work at a time.
    """

    def __init__(self, queue: UnitQueue, actors: int = 1):
        self._queue, self._actors = queue, max(1, actors)
        self._done = 0
        self._done_cost = self._busy_seconds = 0.0
        self._started: dict[str, float] = {}

    def started(self, unit: Unit) -> Unit:
        """Note the start of `unit` and return it."""
        self._started[unit.key] = time.monotonic()
        return unit

    def finished(self, unit: Unit, outcome: Outcome) -> None:
        """Log a unit that the queue knows as done."""
        self._done += 1
        self._done_cost += unit.cost
        self._busy_seconds += outcome.seconds
        left = sum(other.cost for other in self._queue.undone.values())
        score = "" if outcome.result is None else f" {outcome.result.get_score():.3f}"
        rate = f", {outcome.tokens / outcome.seconds:.0f} tokens/s" if outcome.tokens else ""
        logger.info(
            "%d/%d %s:%s (%.1f s%s); about %s left",
            self._done,
            self._done + len(self._queue.undone),
            unit,
            score,
            outcome.seconds,
            rate,
            duration(self._expected(left) / self._actors),
        )

    def heartbeat(self, running: Sequence[Unit]) -> None:
        """Say what runs and how long each of it will still take."""
        lines = [f"{unit}{self._time_left(unit)}" for unit in running]
        logger.info("running: %s", ", ".join(lines) or "nothing yet, actors start or wait for free CPUs")

    def _time_left(self, unit: Unit) -> str:
        if not self._done_cost:
            return ""
        elapsed = time.monotonic() - self._started[unit.key]
        return f" (about {duration(max(0.0, self._expected(unit.cost) - elapsed))} left)"

    def _expected(self, cost: float) -> float:
        """Seconds of one actor for `cost`, at the rate measured so far."""
        return cost * self._busy_seconds / max(1.0, self._done_cost)

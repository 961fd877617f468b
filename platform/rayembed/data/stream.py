"""Ray Data streams the plan to a worker: fetch, tokenise, deliver in order, from any step.

Each worker builds its own stream from the step it starts at, so resuming needs nothing but that step. A
thread of the worker turns what arrives into tensors ahead of the training step, which only picks it up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray.data

from rayembed.config import SourceConfig
from rayembed.contract import Contract
from rayembed.data.collate import Collator, TrainingBatch, to_training_batch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prefetch import Prefetched
from rayembed.data.prepared import PreparedRows
from rayembed.data.token_cache import TokenCache
from rayembed.model.checkpoint import load_tokenizer

STEPS_PER_BLOCK = 8
DATA_CPUS = 0.25  # that a worker reserves for its stream
PREFETCHED_STEPS = 8


@dataclass(frozen=True)
class StreamSpec:
    """Everything a worker's stream is made from; small enough to send to any process."""

    plan: Path
    sources: tuple[Path, ...]
    blend: tuple[SourceConfig, ...]
    contract: Contract
    tokenizer: str
    seed: int
    token_caches: tuple[Path, ...] = ()

    def collator(self, rank: int, world_size: int) -> Collator:
        """Collator over the memory-mapped sources."""
        return Collator(
            [PreparedRows.open(path) for path in self.sources],
            self.blend,
            self.contract,
            load_tokenizer(self.tokenizer),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            token_caches=[TokenCache(folder) for folder in self.token_caches],
        )


class _FetchAndTokenize:
    """Ray Data actor: step numbers in, this worker's records out."""

    def __init__(self, spec: StreamSpec, rank: int, world_size: int):
        self._spec = spec
        self._rank = rank
        self._world_size = world_size

    @cached_property
    def _collator(self) -> Collator:
        return self._spec.collator(self._rank, self._world_size)

    @cached_property
    def _plan(self) -> PlanReader:
        return PlanReader(self._spec.plan)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._collator.record(self._plan.read(row["item"]))


def stream_batches(
    spec: StreamSpec, *, start: int, stop: int, rank: int, world_size: int
) -> Iterator[TrainingBatch]:
    """Batches of steps start, start + 1, ..., stop - 1 for one worker, in order.

    Work begins with the call, so that it goes on while the model is built. Memory is bounded by Ray Data's
    back-pressure plus `PREFETCHED_STEPS`. Every worker calls this for itself.
    """
    return Prefetched(
        lambda: _ray_batches(spec, start=start, stop=stop, rank=rank, world_size=world_size), PREFETCHED_STEPS
    )


def _ray_batches(
    spec: StreamSpec, *, start: int, stop: int, rank: int, world_size: int
) -> Iterator[TrainingBatch]:
    if start >= stop:
        return
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    steps = range(start, stop)
    # On the worker's own node, out of what the worker reserved: the stream neither waits for a place nor
    # outlives the worker on a node that is taken away. For the same reason `from_items`: its siblings start
    # tasks of a whole CPU.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    with ray.data.DataContext.current(context):  # which the data set keeps
        blocks = ray.data.from_items(list(steps), override_num_blocks=-(-len(steps) // STEPS_PER_BLOCK))
    dataset = blocks.map(
        _FetchAndTokenize,  # type: ignore[arg-type]  # Ray Data calls an instance of it
        fn_constructor_args=(spec, rank, world_size),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,
        label_selector=here,
    )
    for step, record in zip(steps, dataset.iter_rows(), strict=True):
        assert record["step"] == step, "Ray Data keeps the order of the blocks"
        yield to_training_batch(record)


def local_batches(
    spec: StreamSpec, *, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[TrainingBatch]:
    """The same batches made in this process, without Ray: for dry runs, benchmarks and tests."""
    plan = PlanReader(spec.plan)
    collator = spec.collator(rank, world_size)
    for step in range(start, stop):
        yield to_training_batch(collator.record(plan.read(step)))

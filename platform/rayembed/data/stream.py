"""Ray Data streams the plan to a worker: fetch, tokenise, deliver in order, from any step.

Each worker builds its own stream from the step it starts at, so resuming needs nothing but that step. A
thread of the worker turns what arrives into tensors ahead of the training step, which only picks it up.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray.data
import torch
from threadpoolctl import threadpool_limits

from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.collate import Collator, TrainingBatch, to_training_batch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.token_cache import TokenCache

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


Item = TypeVar("Item")

_LOOK_FOR_CLOSE_SECONDS = 0.5


class _End:
    """Put behind the last item, with the error that ended the work if there was one."""

    def __init__(self, error: BaseException | None):
        self.error = error


class Prefetched(Generic[Item]):
    """Iterates over what `make` makes, up to `size` items ahead.

    Work begins when the object is made. An error of the iterator is raised where its item would have come.
    torch has one processor there, so that making the next items leaves the others to the training step.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], size: int):
        self._items: queue.Queue[Item | _End] = queue.Queue(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self._items.get()
        if not isinstance(item, _End):
            return item
        self._items.put(item)  # for whoever asks again
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop working ahead; items that are ready are dropped, and what follows is the end."""
        self._closed.set()
        self._thread.join()
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put(_End(None))

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        keep_to_one_processor()
        error = None
        try:
            for item in make():
                if not self._put(item):
                    return
        except BaseException as caught:  # noqa: BLE001 - handed to the consumer, which raises it
            error = caught
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=_LOOK_FOR_CLOSE_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def keep_to_one_processor() -> None:
    """Let torch compute in the calling thread alone; other threads keep their processors.

    GNU OpenMP gives every thread that computes in parallel a pool of its own. As soon as the pools of a
    process have more threads than the machine has processors, all of them go to sleep at every barrier in
    place of waiting actively for a while, which made a training step on two processors 6 to 10 % slower.
    Source: `gomp_throttled_spin_count_var` in libgomp's env.c.
    """
    torch.get_num_threads()  # torch sets a thread up at its first use, which would undo the limit
    threadpool_limits(1, user_api="openmp")

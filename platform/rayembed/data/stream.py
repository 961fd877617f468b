"""From the plan to the batches of a rank: a Ray Data job writes lanes, and each rank reads its own.

The job runs next to training and keeps a few ranges of steps ahead of it, so training starts as soon as the
first range is there. Resuming needs nothing but the step.
"""

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import ray.data
import torch
from threadpoolctl import threadpool_limits

from rayembed.common.errors import DataError, UserError
from rayembed.common.paths import fetch
from rayembed.common.ray_cluster import live_nodes
from rayembed.common.ray_work import reason_of
from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.choose import RowChooser
from rayembed.data.collate import TrainingBatch, to_training_batch
from rayembed.data.lane_folder import RANGES_AHEAD, LaneFolder
from rayembed.data.lanes import LaneCutter, TextReader
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows

PREFETCHED_STEPS = 8
_LOOK_SECONDS = 5.0  # between looks for ranges that ranks need again
_END_SECONDS = 30.0  # for the range that is being written when training ends

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamSpec:
    """Everything a stage's batches are made from; small enough to send to any process.

    `teacher` is the checkpoint of a teacher that reads texts in another way than the student.
    """

    plan: Path
    sources: tuple[Path, ...]
    blend: tuple[SourceConfig, ...]
    contract: Contract
    tokenizer: str
    seed: int
    lanes: LaneFolder
    teacher: str | None = None

    def chooser(self) -> RowChooser:
        """Draws documents for planned rows out of the memory-mapped sources."""
        return RowChooser([PreparedRows.open(path) for path in self.sources], self.blend, seed=self.seed)

    def cutter(self, lanes: int | None = None) -> LaneCutter:
        """Cuts planned steps into the stage's number of lanes, or into another one."""
        reader = TextReader(self.contract, load_tokenizer(self.tokenizer))
        teacher = read_as(self.teacher) if self.teacher else None
        return LaneCutter(self.chooser(), self.blend, reader, lanes or self.lanes.lanes, teacher)


def read_as(checkpoint: str) -> TextReader:
    """How the model of a checkpoint folder reads texts."""
    folder = fetch(checkpoint)
    return TextReader(Contract.load(folder), load_tokenizer(folder / "tokenizer"))


@contextlib.contextmanager
def lanes_written(spec: StreamSpec, step: int = 0) -> Iterator[StreamSpec]:
    """Write the lanes of a stage while the body trains; yields the spec with the layout that they have.

    What is there is kept, and all is removed when the body is done. Called on the driver.

    Args:
        spec: of the stage.
        step: where training will probably start.
    """
    spec = replace(spec, lanes=spec.lanes.begin(step))
    ended = threading.Event()
    thread = threading.Thread(target=_write_lanes, args=(spec, ended), name="lanes", daemon=True)
    thread.start()
    try:
        yield spec
    finally:
        ended.set()
        spec.lanes.end()
        thread.join(_END_SECONDS)
    spec.lanes.remove()


def _write_lanes(spec: StreamSpec, ended: threading.Event) -> None:
    """Write what is missing, the first ranges first; the ranks learn why no more come.

    A job ends early where the ranks go back to a checkpoint whose ranges are gone. The next one writes them.
    """
    try:
        while not ended.is_set():
            ranges = spec.lanes.missing()
            for row in _lanes_job(spec, ranges) if ranges else ():
                if ended.is_set():
                    return
                if row["error"]:
                    raise DataError(row["error"])
            ended.wait(_LOOK_SECONDS)
    except UserError as error:
        spec.lanes.fail(str(error))
    except Exception as error:  # whatever it is, the ranks wait
        logger.exception("writing lanes failed")
        spec.lanes.fail(f"the lanes of the stage could not be written: {reason_of(error)}")


def _lanes_job(spec: StreamSpec, ranges: list[int]) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):  # which the data set keeps
        # `from_items`, because its siblings start tasks of a whole CPU, and the workers may have them all.
        numbers = ray.data.from_items(ranges, override_num_blocks=len(ranges))
    dataset = numbers.map(
        _RangeWriter,  # type: ignore[arg-type]  # Ray Data calls an instance of it
        fn_constructor_args=(spec,),
        compute=ray.data.ActorPoolStrategy(size=min(len(live_nodes()), RANGES_AHEAD, len(ranges))),
        num_cpus=0,
    )
    return iter(dataset.iter_rows())


class _RangeWriter:
    """Ray Data actor: joins plan and rows of a range of steps, tokenises, cuts and writes them."""

    def __init__(self, spec: StreamSpec):
        os.setpriority(os.PRIO_PROCESS, 0, 19)  # training goes first where they share processors
        self._spec = spec

    @cached_property
    def _cutter(self) -> LaneCutter:
        return self._spec.cutter()

    @cached_property
    def _plan(self) -> PlanReader:
        return PlanReader(self._spec.plan)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        lanes, number = self._spec.lanes, row["item"]
        try:
            if lanes.wait_for_turn(number):
                steps = lanes.steps_in(number)
                lanes.write(number, (self._cutter.cut(self._plan.read(step)) for step in steps))
        except UserError as error:
            return {"error": str(error)}
        return {"error": ""}


def stream_batches(
    spec: StreamSpec, *, start: int, stop: int, rank: int, world_size: int
) -> Iterator[TrainingBatch]:
    """Batches of steps start, start + 1, ..., stop - 1 for one worker, in order, read a few steps ahead."""
    return read_ahead(spec.lanes.batches(start, stop, rank=rank, world_size=world_size), PREFETCHED_STEPS)


def local_batches(
    spec: StreamSpec, *, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[TrainingBatch]:
    """The same batches made in this process, without files and Ray: for dry runs, benchmarks and tests."""
    plan, cutter = PlanReader(spec.plan), spec.cutter()
    for step in range(start, stop):
        own = cutter.cut(plan.read(step)).take(list(range(rank, spec.lanes.lanes, world_size)))
        yield to_training_batch(step, own, rank=rank, world_size=world_size)


Item = TypeVar("Item")


def read_ahead(items: Iterator[Item], size: int) -> Iterator[Item]:
    """The same items, up to `size` of them made ahead by a thread, in which torch has one processor."""
    pool = ThreadPoolExecutor(1, "read-ahead", initializer=keep_to_one_processor)
    try:
        waiting = deque(pool.submit(next, items, None) for _ in range(size))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def keep_to_one_processor() -> None:
    """Let torch compute in the calling thread alone; other threads keep their processors.

    GNU OpenMP gives every thread that computes in parallel a pool of its own. As soon as the pools of a
    process have more threads than the machine has processors, all of them go to sleep at every barrier in
    place of waiting actively for a while, which made a training step on two processors 6 to 10 % slower.
    Source: `gomp_throttled_spin_count_var` in libgomp's env.c.
    """
    torch.get_num_threads()  # torch sets a thread up at its first use, which would undo the limit
    threadpool_limits(1, user_api="openmp")

"""Lanes on disk or in an object store: one Arrow file for every few steps, in the order of the plan.

A file `range-N.arrow` has the lanes of its first step, those of its second, and so on, each a record batch: a
rank reads its own and skips the others. A file appears when it is complete, and goes when a checkpoint lies
behind it; ranks that go back to an older checkpoint get it again. Next to the files lie `reading` with the
number of the range that the ranks are at, and `failed` with the reason where no more will come.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
from pyarrow import fs

from rayembed.common.errors import DataError
from rayembed.common.stores import patiently
from rayembed.data.collate import TrainingBatch, to_training_batch
from rayembed.data.lanes import LANE_SCHEMA
from rayembed.records.stored_folder import StoredFolder

RANGES_AHEAD = 16  # of the ranks; bounds the disk and the work in vain when a run is stopped

_LANES = 64  # at least; each rank needs one
_ROWS_OF_A_RANGE = 2048
_LAYOUT, _READING, _FAILED, _END = "layout.json", "reading", "failed", "end"
_LOOK_SECONDS, _REPORT_SECONDS = 0.1, 30.0
_FEW_RANKS = 8  # that read whole files from an object store, where every lane would be a request of its own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaneFolder:
    """Where the lanes of a stage lie, and how they are laid out.

    Attributes:
        location: folder or URI.
        name: path of the lanes in it.
        steps: of the stage.
        lanes: of each step.
        steps_of_a_range: steps of a file.
    """

    location: str
    name: str
    steps: int
    lanes: int
    steps_of_a_range: int

    @classmethod
    def of(cls, location: str, name: str, *, steps: int, batch_size: int, workers: int) -> "LaneFolder":
        """A layout in which so many workers have equally many lanes, and every lane a row."""
        lanes = min(-(-_LANES // workers) * workers, batch_size)
        return cls(location, name, steps, lanes, max(_ROWS_OF_A_RANGE // batch_size, 1))

    def begin(self, step: int = 0) -> "LaneFolder":
        """Make the folder, or take over the layout that it began with; called before anything is written.

        Args:
            step: where the ranks will probably start; the first range that they read decides.
        """
        self._store.create()
        stored = self._store.get(_LAYOUT)
        if stored is None:
            content = {"lanes": self.lanes, "steps_of_a_range": self.steps_of_a_range}
            self._store.put(_LAYOUT, json.dumps(content).encode())
        elif self._store.get(_FAILED) is not None:
            self._store.delete(_FAILED)
        begun = self if stored is None else replace(self, **json.loads(stored))
        self._store.put(_READING, str(step // begun.steps_of_a_range).encode())
        return begun

    def missing(self) -> list[int]:
        """Numbers of the ranges that are not there, from the one on that the ranks are at."""
        names, reading = self._store.names(), self._reading()
        ranges = range(-(-self.steps // self.steps_of_a_range))[reading:]
        return [number for number in ranges if self._name(number) not in names]

    def steps_in(self, number: int) -> range:
        """Steps of a range."""
        first = number * self.steps_of_a_range
        return range(first, min(first + self.steps_of_a_range, self.steps))

    def write(self, number: int, steps: Iterable[pa.Table]) -> None:
        """Store a range; a process that is killed leaves nothing that is taken for one.

        Raises:
            ResourceError: the disk is full.
        """
        sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, LANE_SCHEMA, options=options) as writer:
            for lanes in steps:
                writer.write_table(lanes, max_chunksize=1)
        self._store.put(self._name(number), sink.getvalue())

    def batches(self, start: int, stop: int, *, rank: int, world_size: int) -> Iterator[TrainingBatch]:
        """Batches of one rank for steps start, ..., stop - 1; waits for ranges that are not written yet.

        Raises:
            DataError: the writer failed, or there are fewer lanes than ranks.
        """
        if world_size > self.lanes:
            raise DataError(
                f"the {self.lanes} lanes of {self.location}/{self.name} do not suffice {world_size} workers; "
                "lower training.workers, or remove the folder: it is written again"
            )
        for number in range(start // self.steps_of_a_range, -(-stop // self.steps_of_a_range)):
            if rank == 0:
                self._store.put(_READING, str(number).encode())
            file = self._opened(number, whole=world_size <= _FEW_RANKS)
            first = number * self.steps_of_a_range
            for step in self.steps_in(number):
                if start <= step < stop:
                    before = (step - first) * self.lanes
                    own = [file.get_batch(before + lane) for lane in range(rank, self.lanes, world_size)]
                    lanes = pa.Table.from_batches(own)
                    yield to_training_batch(step, lanes, rank=rank, world_size=world_size)

    def wait_for_turn(self, number: int) -> bool:
        """Return when the ranks are near a range; False: they are behind it, or need one that is gone."""
        while (reading := self._reading()) <= number:
            if number <= reading + RANGES_AHEAD:
                return True
            if not self._store.has(self._name(reading)):
                return False
            time.sleep(10 * _LOOK_SECONDS)
        return False

    def drop_before(self, step: int) -> None:
        """Delete the ranges whose steps are all before this one."""
        needed = self._name(step // self.steps_of_a_range)
        for name in self._store.names():
            if name.startswith("range-") and name < needed:
                self._store.delete(name)

    def end(self) -> None:
        """Let the writer stop."""
        self._store.put(_READING, _END.encode())

    def fail(self, reason: str) -> None:
        """Tell the ranks that no more ranges will come."""
        self._store.put(_FAILED, reason.encode())

    def remove(self) -> None:
        """Delete all lanes; the plan and the sources make them again."""
        self._store.remove()

    def _opened(self, number: int, *, whole: bool) -> pa.ipc.RecordBatchFileReader:
        name, reported = self._name(number), time.monotonic()
        while not self._store.has(name):
            if (reason := self._store.get(_FAILED)) is not None:
                raise DataError(reason.decode())
            if time.monotonic() > reported + _REPORT_SECONDS:
                reported = time.monotonic()
                logger.info("training waits for %s/%s", self.name, name)
            time.sleep(_LOOK_SECONDS)
        files = self._store.files
        in_memory = whole and not isinstance(files.base_fs, fs.LocalFileSystem)

        def opened() -> pa.ipc.RecordBatchFileReader:
            file = files.open_input_file(name)
            return pa.ipc.open_file(file.read_buffer() if in_memory else file)

        return patiently(self.location, opened)

    def _name(self, number: int) -> str:
        return f"range-{number:06d}.arrow"

    def _reading(self) -> int:
        """Range that the ranks are at; behind all of them when training has ended."""
        reading = self._store.get(_READING)
        return sys.maxsize if reading == _END.encode() else int(reading or 0)

    @cached_property
    def _store(self) -> StoredFolder:
        return StoredFolder(self.location, self.name)

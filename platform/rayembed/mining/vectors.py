"""Texts and their vectors on disk, in shards: a run that is cut off continues with the missing ones.

A texts file has one row group for each shard, and a column `instruction` if a text brings one of its own. The
vectors of shard 3 are `00003.npy` in a folder named by everything they depend on: texts, teacher, side and
instructions.
"""

import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayembed.common.paths import atomic_write, file_digest
from rayembed.common.ray_work import run_items
from rayembed.contract.instructions import Side
from rayembed.data.plan import fingerprint
from rayembed.mining.teachers import DenseTeacher, Encoder, identity, load_teacher, unit_vectors

logger = logging.getLogger(__name__)

SHARD_ROWS = 8192  # enough for batches of neighbours in length, few enough to be done again


@dataclass(frozen=True)
class VectorJob:
    """Texts of one side that a teacher encodes, and where their vectors go.

    `instruction` is that of the texts without one of their own.
    """

    texts: Path
    folder: Path
    side: Side
    instruction: str | None

    @classmethod
    def of(
        cls, texts: Path, folder: Path, teacher: DenseTeacher, side: Side, instruction: str | None
    ) -> "VectorJob":
        """Job whose folder, inside `folder`, is named by what the vectors depend on."""
        made_from: dict[str, object] = {
            "texts": file_digest(texts),
            "teacher": identity(teacher),
            "side": side,
            "instruction": instruction,
        }
        return cls(texts, folder / f"{side}-{fingerprint(made_from)[:12]}", side, instruction)

    @property
    def shards(self) -> list[Path]:
        """Files of vectors in order, whether or not they are there yet."""
        count = pq.ParquetFile(self.texts).num_row_groups
        return [self.folder / f"{index:05d}.npy" for index in range(count)]

    def open(self) -> list[np.ndarray]:
        """All shards, memory-mapped."""
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.shards]


class EncodeShard:
    """Encodes one shard of a job and leaves its vectors on disk; an actor's worker."""

    def __init__(self, teacher: DenseTeacher, jobs: Sequence[VectorJob]):
        self._teacher = teacher
        self._jobs = jobs

    @cached_property
    def _encoder(self) -> Encoder:
        return load_teacher(self._teacher)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encode shard `item["shard"]` of job `item["job"]`."""
        job = self._jobs[item["job"]]
        columns = pq.ParquetFile(job.texts).read_row_group(item["shard"]).to_pydict()
        texts = columns["text"]
        members: defaultdict[str | None, list[int]] = defaultdict(list)
        for index, own in enumerate(columns.get("instruction", [""] * len(texts))):
            members[own or job.instruction].append(index)
        parts = [
            unit_vectors(self._encoder, [texts[index] for index in indices], job.side, instruction)
            for instruction, indices in members.items()
        ]
        order = np.argsort(np.concatenate(list(members.values())))
        stream = io.BytesIO()
        np.save(stream, np.concatenate(parts)[order], allow_pickle=False)
        atomic_write(job.shards[item["shard"]], stream.getvalue())
        return {"texts": len(texts)}


def write_texts(texts: pa.Array, path: Path, instructions: pa.Array | None = None) -> Path:
    """Store texts and their own instructions ("" for none) with one row group for each shard."""
    columns = {"text": texts}
    if instructions is not None and pc.any(pc.not_equal(instructions, "")).as_py():
        columns["instruction"] = instructions
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=SHARD_ROWS, compression="zstd")
    atomic_write(path, stream.getvalue())
    return path


def encode(teacher: DenseTeacher, jobs: Sequence[VectorJob], *, actors: int | None, title: str) -> int:
    """Encode all shards that are not on disk yet, on one pool of actors; returns how many texts that were.

    Raises:
        UserError: the teacher cannot be loaded, or fails on a text. What was encoded stays.
    """
    missing = [
        {"job": number, "shard": shard}
        for number, job in enumerate(jobs)
        for shard, path in enumerate(job.shards)
        if not path.is_file()
    ]
    total = sum(len(job.shards) for job in jobs)
    if len(missing) < total:
        logger.info("%s: %d of %d shards are there already", title, total - len(missing), total)
    results = run_items(partial(EncodeShard, teacher, tuple(jobs)), missing, actors=actors, title=title)
    return sum(result["texts"] for result in results)

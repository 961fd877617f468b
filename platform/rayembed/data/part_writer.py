"""One part of a user's source -> one Parquet file of checked rows, in bounded memory.

Written are `part-N.parquet`, `part-N.rejects.jsonl`, `part-N.npz` with a content hash and the line of each
row, and last `part-N.json`, whose presence says that the part is complete.
"""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, clear_disk_errors, fetch, here, push
from rayembed.config.data import UserSourceConfig
from rayembed.data.card import SourceStatistics
from rayembed.records import Part, Row, Unreadable, read_part
from rayembed.records.checks import BadRow, RowChecker, unfolded
from rayembed.records.columns import LOOKED_AT, Columns
from rayembed.records.schema import SCHEMAS

ROWS = 4096  # written at a time
_FILES = (".parquet", ".rejects.jsonl", ".npz")


@dataclass(frozen=True)
class PartJob:
    """A part to be written."""

    name: str  # of the source
    source: UserSourceConfig
    part: Part
    index: int
    folder: Path

    def path(self, suffix: str) -> Path:
        """One of the part's files."""
        return here(self.folder) / f"part-{self.index:05d}{suffix}"


def write_part(job: PartJob) -> dict[str, Any]:
    """Read, check and write a part, unless that was done before; returns its summary.

    Raises:
        DataError: the file is damaged or lacks a column.
        ResourceError: the disk is full.
    """
    done = fetch(job.path(".json"))
    done.parent.mkdir(parents=True, exist_ok=True)
    if done.is_file():
        return json.loads(done.read_text())
    try:
        with clear_disk_errors(job.folder):
            summary = _write_part(job)
            for suffix in _FILES:
                push(job.path(suffix))
            atomic_write(done, json.dumps(summary))
    finally:
        if not done.is_file():
            for suffix in _FILES:
                job.path(suffix).unlink(missing_ok=True)
    return summary


def _write_part(job: PartJob) -> dict[str, Any]:
    source, schema, uri = job.source, SCHEMAS[job.source.kind], job.part.file.uri
    columns = Columns(source.kind, source.columns)
    checker = RowChecker(source.kind, columns, job.name, source.task_type, source.label_texts)
    rejected: Counter[str] = Counter()
    hashes, numbers, last, looked_at = [], [], 0, 0
    with (
        job.path(".rejects.jsonl").open("w", encoding="utf-8") as rejects,
        pq.ParquetWriter(job.path(".parquet"), schema, compression="zstd") as writer,
    ):
        batch: list[dict[str, Any]] = []
        for row in read_part(job.part):
            last = max(last, row.number)
            if row.record is None:
                continue
            for record in unfolded(row.record):
                looked_at += isinstance(record, dict)
                try:
                    checked = checker.row(record)
                except BadRow as bad:
                    rejected[bad.reason] += 1
                    _write_reject(rejects, row, bad)
                    continue
                except DataError as error:
                    raise DataError(f"{uri}:{row.number}: {error}") from error
                finally:
                    if looked_at == LOOKED_AT:
                        columns.check(uri)
                hashes.append(content_hash(checked))
                numbers.append(row.number)
                batch.append(checked)
            if len(batch) >= ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    if looked_at:
        columns.check(uri)
    rows = {"hashes": np.array(hashes, dtype=np.uint64), "numbers": np.array(numbers, dtype=np.int64)}
    with job.path(".npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **rows)
    return {
        "rows": len(hashes), "rejected": dict(rejected), "lines": last, "columns": list(columns.present)
    }  # fmt: skip


def content_hash(row: dict[str, Any]) -> int:
    """64-bit hash of what training sees of a row.

    A row that is in two clusters stays two rows: they share their texts, so they never meet in a batch, and
    the cluster of the second is not lost.
    """
    named = ("dataset", "task_type", "query_id", "document_ids", "text_id", "group")
    said = {name: value for name, value in row.items() if name not in named}
    return int.from_bytes(hashlib.sha256(json.dumps(said).encode()).digest()[:8])


@dataclass(frozen=True)
class FinishJob:
    """A written part that goes into the finished source without its duplicates."""

    written: Path
    finished: Path
    duplicates: tuple[int, ...]  # positions in the part


def finish_part(job: FinishJob) -> SourceStatistics:
    """Copy a written part without its duplicates and look at what is left; the written one stays."""
    written, finished = fetch(job.written), here(job.finished)
    finished.unlink(missing_ok=True)  # of a build that was killed
    with clear_disk_errors(finished.parent):
        if job.duplicates:
            _write_without(written, finished, job.duplicates)
        else:
            link(written, finished)
    push(finished)
    with pq.ParquetFile(finished) as opened:
        return SourceStatistics.of(pa.Table.from_batches([batch]) for batch in opened.iter_batches(ROWS))


def _write_without(written: Path, finished: Path, duplicates: tuple[int, ...]) -> None:
    first = 0
    with (
        pq.ParquetFile(written) as opened,
        pq.ParquetWriter(finished, opened.schema_arrow, compression="zstd") as writer,
    ):
        for batch in opened.iter_batches(ROWS):
            keep = ~np.isin(np.arange(first, first + batch.num_rows), duplicates)
            writer.write_batch(batch.filter(pa.array(keep)))
            first += batch.num_rows


def link(written: Path, finished: Path) -> None:
    """A second name costs no space; where the filesystem has none, a copy."""
    try:
        finished.hardlink_to(written)
    except (PermissionError, NotImplementedError):
        shutil.copyfile(written, finished)


def _write_reject(rejects: TextIO, row: Row, bad: BadRow) -> None:
    """A line of the rejects file; its number is still that in the part."""
    shown = row.record.text if isinstance(row.record, Unreadable) else repr(row.record)
    content = {"number": row.number, "reason": bad.reason, "detail": bad.detail, "row": shown[:500]}
    rejects.write(json.dumps(content) + "\n")

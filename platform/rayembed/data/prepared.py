"""Rows of a prepared source on disk: uncompressed Arrow files, mapped into memory, and an index of them.

Any row is at hand without reading the others, and what is mapped is the operating system's page cache, so the
memory of a process does not grow with the source.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_file, atomic_write, fetch, file_digest
from rayembed.data.classes import Classes
from rayembed.records.schema import PAIR_SCHEMA, document_id

ROWS_PER_BATCH = 1 << 14


@dataclass(frozen=True)
class RowsFile:
    """An Arrow file of a prepared source, next to the index."""

    name: str
    rows: int
    sha256: str


def write_rows(tables: Iterable[pa.Table], path: Path) -> RowsFile:
    """Write tables of the pair layout one after the other into one file."""
    rows = 0
    with atomic_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, PAIR_SCHEMA) as writer:
            for table in tables:
                writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
                rows += table.num_rows
        return RowsFile(path.name, rows, file_digest(temporary))


def write_index(
    files: Iterable[RowsFile], path: Path, *, labelled: bool = False, class_texts: Sequence[str] | None = None
) -> None:
    """Write what `PreparedRows.open` reads; it says that all files are complete.

    Args:
        files: of the rows, in order.
        path: of the index.
        labelled: rows have no documents, each step draws them by `Classes`, which are written next to them.
        class_texts: texts that stand for the classes, where these are the documents.
    """
    index = {"files": [asdict(file) for file in files], "labelled": labelled, "class_texts": class_texts}
    atomic_write(path, json.dumps(index, indent=2) + "\n")


class PreparedRows:
    """Random access to rows of the pair layout; those of a labelled source are a text and its class alone."""

    def __init__(self, batches: Sequence[pa.RecordBatch], classes: Classes | None = None):
        self._batches = batches
        self.classes = classes
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    @staticmethod
    def open(index: Path) -> "PreparedRows":
        """Map the files of a prepared source; a node fetches them once from a store.

        Raises:
            DataError: a file is missing or cut short.
        """
        index = fetch(index)
        content = json.loads(index.read_text())
        rows = PreparedRows.of(index.parent, [RowsFile(**file) for file in content["files"]])
        if content["labelled"]:
            with _named_damage(index.parent):
                rows.classes = Classes.open(index.parent, content["class_texts"])
        return rows

    @staticmethod
    def of(folder: Path, files: Iterable[RowsFile]) -> "PreparedRows":
        """Map files of rows that are not in an index yet; errors as of `open`."""
        batches: list[pa.RecordBatch] = []
        with _named_damage(folder):
            for entry in files:
                file = pa.ipc.open_file(pa.memory_map(str(fetch(folder / entry.name))))
                batches += [file.get_batch(number) for number in range(file.num_record_batches)]
        return PreparedRows(batches)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batches(self) -> Sequence[pa.RecordBatch]:
        """All rows in order, in pieces."""
        return self._batches

    def take(self, numbers: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows in the order of `numbers`, as dictionaries of these columns."""
        found: list[dict[str, Any]] = [{}] * len(numbers)
        positions = np.searchsorted(self._starts, numbers, side="right") - 1
        for position in np.unique(positions).tolist():
            [inside] = np.nonzero(positions == position)
            within = pa.array(numbers[inside] - self._starts[position])
            rows = self._batches[position].select(columns).take(within).to_pylist()
            for place, row in zip(inside.tolist(), rows, strict=True):
                found[place] = row
        return found

    def has_teacher_scores(self) -> bool:
        """Whether some row has scores of a teacher."""
        return any(batch["teacher_scores"].null_count < batch.num_rows for batch in self._batches)

    def instructions(self) -> set[str]:
        """The distinct instructions of rows that bring one of their own."""
        found = (batch["instruction"].unique().to_pylist() for batch in self._batches)
        return {instruction for part in found for instruction in part if instruction}

    def rows_without_negatives(self) -> int:
        """How many rows bring no negatives and get none from other classes."""
        if self.classes is not None:
            return 0
        counts = (np.asarray(batch["negatives"].value_lengths()) for batch in self._batches)
        return sum(int((lengths == 0).sum()) for lengths in counts)

    def query_keys(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The query of every row as a key, see `KeyReader`."""
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            yield np.arange(start, start + batch.num_rows), _as_keys(batch["query_id"])

    def clash_keys(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Texts and cluster of every row as keys, see `KeyReader`; only columns of ids are touched."""
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            numbers = np.arange(start, start + batch.num_rows)
            queries = _as_keys(batch["query_id"])
            num_positives = np.asarray(batch["positives"].value_lengths())
            positives = _as_keys(_first_of_each(batch["document_ids"], num_positives))
            clusters, clustered = _cluster_keys(batch)
            rows = np.concatenate([numbers, np.repeat(numbers, num_positives), numbers[clustered]])
            keys = np.concatenate([queries, positives, clusters])
            by_row = np.argsort(rows, kind="stable")
            yield rows[by_row], keys[by_row]


@contextmanager
def _named_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # Arrow's and numpy's errors are of these
        raise DataError(
            f"the rows in {folder} are not complete ({error}); remove that folder, it is prepared again"
        ) from error


def _first_of_each(lists: pa.ListArray, counts: np.ndarray) -> pa.StringArray:
    """The first `counts[i]` items of list i, one after the other."""
    starts = np.asarray(lists.offsets)[:-1]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return lists.values.take(pa.array(np.repeat(starts, counts) + within))


def _as_keys(ids: pa.StringArray) -> np.ndarray:
    """Content hashes, 16 hexadecimal characters each, as numbers: uint64 [ids]."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if not len(ids):
        return np.empty(0, np.uint64)
    assert (np.diff(offsets) == 16).all(), "ids are made by document_id"
    characters = memoryview(ids.buffers()[2])[offsets[0] : offsets[-1]]
    return np.frombuffer(bytes.fromhex(bytes(characters).decode()), ">u8").astype(np.uint64)


def _cluster_keys(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the clusters, each within its dataset, and which rows of the batch have one."""
    column = batch["cluster"].dictionary_encode()
    clustered = np.flatnonzero(np.asarray(column.is_valid()))
    names = column.dictionary.to_pylist()
    dataset = batch["dataset"][0].as_py() if batch.num_rows else ""
    keys = np.array([int(document_id(f"{dataset}\n{name}"), 16) for name in names], dtype=np.uint64)
    codes = np.asarray(column.indices.fill_null(0), dtype=np.int64)[clustered]
    return keys[codes], clustered

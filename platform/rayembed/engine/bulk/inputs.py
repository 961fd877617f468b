"""The files of a job: which they are, how many rows they have, and where their rows lie.

Rows are numbered through all files, in the order of the files. JSON lines are indexed once, so that any range
of rows can be read without what comes before it. Files of the other formats that training reads (CSV, Arrow,
JSON arrays, compressed files) are read from their beginning for every range.
"""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records import READERS, SUFFIXES, find_parts, read_part
from rayembed.records.columnar import PARQUET, open_parquet
from rayembed.records.layout import is_bookkeeping, refuse_tables
from rayembed.records.locations import StoredFile, list_files, names_files
from rayembed.records.text_files import JSON, is_array

ROWS_PER_OFFSET = 1024
_BYTES_PER_READ = 2**20
_READERS = 8  # files that are counted and digested at the same time


@dataclass(frozen=True)
class InputFile:
    """A file as it was when the job was planned.

    Attributes:
        path: where it is, on the disk or as a URI.
        rows: number of rows; blank lines are none.
        bytes: its size.
        modified: time of its last change, ns; 0 where the store keeps none.
        sha256: digest of its content.
        offsets: of JSON lines, byte position of every `ROWS_PER_OFFSET`-th row; none of other formats.
    """

    path: str
    rows: int
    bytes: int
    modified: int
    sha256: str
    offsets: tuple[int, ...] = ()

    @property
    def stored(self) -> StoredFile:
        """The file as readers know it."""
        place = self.path.partition("?")[0] if "://" in self.path else self.path
        return StoredFile(self.path, place.rpartition("/")[2], self.bytes, self.modified)

    def description(self) -> dict[str, Any]:
        """What a manifest keeps of the file."""
        return {name: value for name, value in asdict(self).items() if name != "offsets"}


@dataclass(frozen=True)
class Piece:
    """Rows `start` up to `stop` of one file, counted within the file."""

    file: InputFile
    start: int
    stop: int


class InputRows:
    """The rows of all files as one sequence."""

    def __init__(self, files: Sequence[InputFile]):
        self.files = tuple(files)
        self._ends = list(accumulate(file.rows for file in files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Where rows `start` up to `stop` lie, in order."""
        while start < stop:
            position = bisect_right(self._ends, start)
            file = self.files[position]
            first = self._ends[position] - file.rows
            end = min(stop, self._ends[position])
            yield Piece(file, start - first, end - first)
            start = end

    def place(self, row: int) -> str:
        """Where a row is, in words."""
        piece = next(self.pieces(row, row + 1))
        return f"row {piece.start + 1} of {piece.file.path}"


def find_files(pattern: str | Path) -> list[StoredFile]:
    """Files that `pattern` stands for, in the order of their names.

    Args:
        pattern: a file, a folder (searched with its subfolders; names that start with . or _ are left out),
            or a glob such as `texts/2026-*.parquet`; or the URI of one in any store that training reads.

    Raises:
        DataError: there are none, a file has another suffix, or they are of a table that has deleted rows.
        ResourceError: the store does not answer.
    """
    pattern, stored = str(pattern), list_files(str(pattern))
    refuse_tables(pattern, stored)
    if names_files(pattern, stored):
        readable = [file for file in stored if any(reader.takes(file) for reader in READERS.values())]
    else:
        readable = [file for file in stored if file.plain_name.endswith(SUFFIXES)]
    if len(readable) < len(stored) and names_files(pattern, stored):
        other = next(file.uri for file in stored if file not in readable)
        raise DataError(f"{other} does not end in {', '.join(SUFFIXES)}; convert it or leave it out")
    found = [file for file in readable if not is_bookkeeping(file.name)]
    if not found:
        raise DataError(f"{pattern} has no files that end in {', '.join(SUFFIXES)}")
    return found


def index_files(stored: Sequence[StoredFile], known: Sequence[dict[str, Any]] = ()) -> InputRows:
    """Count and digest files.

    Args:
        stored: the files.
        known: descriptions from an earlier run; the digest of a file whose size and time of change are the
            same is taken from there.

    Raises:
        DataError: a file cannot be read, or all files are empty.
    """
    digests = {(file["path"], file["bytes"], file["modified"]): file["sha256"] for file in known}
    with ThreadPoolExecutor(_READERS) as readers:
        files = list(readers.map(lambda file: _index(file, digests), stored))
    rows = InputRows(files)
    if not len(rows):
        raise DataError(f"{stored[0].uri}{' and the other files' if len(stored) > 1 else ''} has no rows")
    return rows


def _index(file: StoredFile, digests: dict[tuple[str, int, int], str]) -> InputFile:
    key = (file.uri, file.size, file.changed)
    if JSON.takes(file) and not file.compressed and not is_array(file):
        rows, offsets, digest = _index_lines(file)
        return InputFile(file.uri, rows, *key[1:], digest, offsets)
    if PARQUET.takes(file):
        with open_parquet(file.uri) as parquet:
            rows = parquet.metadata.num_rows
    else:
        rows = sum(1 for _ in streamed(file.uri))
    return InputFile(file.uri, rows, *key[1:], (file.changed and digests.get(key)) or _digest(file))


def _digest(file: StoredFile) -> str:
    with buffered(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def buffered(file: StoredFile) -> io.BufferedReader:
    """The file's bytes, fetched in pieces that suit a store."""
    return io.BufferedReader(file.open(), _BYTES_PER_READ)


def streamed(path: str) -> Iterator[Any]:
    """All records of a file in order; `Unreadable` for a row that is none."""
    for part in find_parts(UserSourceConfig(path=path), Path()):
        yield from (row.record for row in read_part(part) if row.record is not None)


def _index_lines(file: StoredFile) -> tuple[int, tuple[int, ...], str]:
    """Rows of a JSON-lines file, where every `ROWS_PER_OFFSET`-th starts, and the file's digest."""
    rows = position = 0
    offsets = []
    digest = hashlib.sha256()
    with buffered(file) as stream:
        for line in stream:
            digest.update(line)
            if not line.isspace():
                if rows % ROWS_PER_OFFSET == 0:
                    offsets.append(position)
                rows += 1
            position += len(line)
    return rows, tuple(offsets), digest.hexdigest()

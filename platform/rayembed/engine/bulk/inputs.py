"""The files of a job: which they are, how many rows they have, and where their rows lie.

Rows are numbered through all files, in the order of the files. JSON lines are indexed once, so that any range
of rows can be read without what comes before it.
"""

import glob
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.common.paths import file_digest, resolve

PARQUET_SUFFIX = ".parquet"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ROWS_PER_OFFSET = 1024
_READERS = 8  # files that are counted and digested at the same time


@dataclass(frozen=True)
class InputFile:
    """A file as it was when the job was planned.

    Attributes:
        path: where it is.
        rows: number of rows; blank lines are none.
        bytes: its size.
        modified: time of its last change, ns.
        sha256: digest of its content.
        offsets: of JSON lines, byte position of every `ROWS_PER_OFFSET`-th row.
    """

    path: str
    rows: int
    bytes: int
    modified: int
    sha256: str
    offsets: tuple[int, ...] = ()

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


def find_files(pattern: str | Path) -> list[Path]:
    """Parquet or JSON-lines files that `pattern` stands for, in the order of their names.

    Args:
        pattern: a file, a folder (searched with its subfolders; names that start with . or _ are left out),
            or a glob such as `texts/2026-*.parquet`.

    Raises:
        DataError: there are none, or a file has another suffix.
    """
    if "://" in str(pattern):
        raise DataError(f"{pattern} is a URL; mount or copy the files and give their path")
    path = resolve(pattern)
    known = (PARQUET_SUFFIX, *JSON_SUFFIXES)
    if path.is_dir():
        inner = (file.relative_to(path) for file in path.rglob("*") if file.suffix in known)
        found = [path / file for file in inner if not any(part[0] in "._" for part in file.parts)]
    else:
        found = [
            Path(name) for name in ([str(path)] if path.exists() else glob.glob(str(path), recursive=True))
        ]
    if not found:
        raise DataError(f"{path} has no files; give a file, a folder or a glob of {', '.join(known)} files")
    for file in found:
        if file.suffix not in known:
            raise DataError(f"{file} does not end in {', '.join(known)}; convert it or name only such files")
    return sorted(found)


def index_files(paths: Sequence[Path], known: Sequence[dict[str, Any]] = ()) -> InputRows:
    """Count and digest files.

    Args:
        paths: the files.
        known: descriptions from an earlier run; the digest of a file whose size and time of change are the
            same is taken from there.

    Raises:
        DataError: a file cannot be read, or all files are empty.
    """
    digests = {(file["path"], file["bytes"], file["modified"]): file["sha256"] for file in known}
    with ThreadPoolExecutor(_READERS) as readers:
        files = list(readers.map(lambda path: _index(path, digests), paths))
    rows = InputRows(files)
    if not len(rows):
        raise DataError(f"{paths[0]}{' and the other files' if len(paths) > 1 else ''} has no rows")
    return rows


def _index(path: Path, digests: dict[tuple[str, int, int], str]) -> InputFile:
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if path.suffix == PARQUET_SUFFIX:
        with open_parquet(path) as parquet:
            rows = parquet.metadata.num_rows
        return InputFile(str(path), rows, *key[1:], digests.get(key) or file_digest(path))
    rows, offsets, digest = _index_lines(path)
    return InputFile(str(path), rows, *key[1:], digest, offsets)


def _index_lines(path: Path) -> tuple[int, tuple[int, ...], str]:
    """Rows of a JSON-lines file, where every `ROWS_PER_OFFSET`-th starts, and the file's digest."""
    rows = position = 0
    offsets = []
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for line in stream:
            digest.update(line)
            if not line.isspace():
                if rows % ROWS_PER_OFFSET == 0:
                    offsets.append(position)
                rows += 1
            position += len(line)
    return rows, tuple(offsets), digest.hexdigest()


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a Parquet file; DataError when it is cut short or another kind of file."""
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a complete Parquet file ({error}); write it again") from error

"""What a reader is: it cuts a source into parts, and reads a part as records.

A record is a dictionary with the columns of the file, or an `Unreadable` that says why there is none. Parts
are read one by one, by this process or by Ray actors; no part needs another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.locations import StoredFile

PART_BYTES = 64 * 2**20
"""A part is about this large where a file can be cut."""


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read as a record."""

    reason: str
    detail: str
    text: str = ""


class CellText(str):
    """A text that may stand for a list, `["a", "b"]`: of a CSV file, or of a column with a plural name."""


_DISGUISES = {
    b"PAR1": "a Parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; let its name end in .arrow",
    b"\x1f\x8b": "compressed with gzip; unpack it, or let the name of a text file end in .gz",
    b"BZh": "compressed with bzip2; let its name end in .bz2",
    b"\xfd7zXZ": "compressed with xz; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; let its name end in .zst",
    b"PK\x03\x04": "a ZIP archive or an Excel sheet; unpack it, or save it as CSV",
    b"version https://git-lfs": "a pointer of Git LFS in place of the data; fetch that with git lfs pull",
    b"<!doctype": "a web page in place of the data; download the file itself",
    b"<html": "a web page in place of the data; download the file itself",
}


def refuse_disguise(file: StoredFile, head: bytes) -> None:
    """Raise DataError where the first bytes of a file are of another kind than its name says."""
    for start, what in _DISGUISES.items():
        if head.lstrip().lower().startswith(start.lower()):
            raise DataError(f"{file.uri} is {what}")


@dataclass(frozen=True)
class Row:
    """A record and its line or row in the part, from 1; a blank line is only counted and has no record."""

    number: int
    record: dict[str, Any] | Unreadable | None


@dataclass(frozen=True)
class Part:
    """What one task reads: a file, or the piece of it from `start` to `stop` in the reader's own measure."""

    format: str
    file: StoredFile
    start: int = 0
    stop: int | None = None
    extra: dict[str, str] = field(default_factory=dict)  # what else the reader needs, by name


@dataclass(frozen=True)
class Reader:
    """A way to read one format.

    Attributes:
        name: value of `format` in the configuration.
        suffixes: of the files it takes, see `StoredFile.plain_name`; none for a reader of whole folders.
        parts: cuts the files into parts; the folder is for what all parts need, such as an index of texts.
        read: yields the rows of a part in order.
    """

    name: str
    suffixes: tuple[str, ...]
    parts: Callable[[UserSourceConfig, Sequence[StoredFile], Path], list[Part]]
    read: Callable[[Part], Iterator[Row]]

    def takes(self, file: StoredFile) -> bool:
        """Whether a file is of this format by its name."""
        return bool(self.suffixes) and file.plain_name.endswith(self.suffixes)

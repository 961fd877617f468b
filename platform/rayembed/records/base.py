"""What a reader is: it cuts a source into parts, and reads a part as records.

A record is a dictionary with the columns of the file, or an `Unreadable` that says why there is none. Parts
are read one by one, by this process or by Ray actors; no part needs another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


class CsvText(str):
    """A text out of a CSV file, which may stand for a list: `["a", "b"]`."""


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

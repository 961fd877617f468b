"""What a build would take from a source: its files, its columns and its first rows. Nothing is built."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rayembed.config.data import UserSourceConfig
from rayembed.records import find_files, find_parts, read_part, unread_files
from rayembed.records.checks import BadRow, RowChecker, unfolded
from rayembed.records.columns import Columns

_MADE = ("dataset", "task_type", "query_id", "document_ids", "text_id")  # columns that no file brings


@dataclass(frozen=True)
class Sample:
    """The beginning of a source.

    Attributes:
        files: name -> format of the files that are read.
        unread: names of files that look like data and are not read.
        columns: column of the layout -> names that it has in the rows looked at.
        unused: names that no column of the layout takes.
        rows: the first good rows, without columns that are made.
        bad: what is wrong with the rows among them that are left out, with their places.
    """

    files: dict[str, str]
    unread: list[str]
    columns: dict[str, list[str]]
    unused: list[str]
    rows: list[dict[str, Any]]
    bad: list[str]

    def lines(self) -> Iterator[str]:
        """The sample as a person reads it."""
        shown = ", ".join(f"{name} ({form})" for name, form in islice(self.files.items(), 10))
        yield f"files: {len(self.files)}: {shown}" + (", ..." if len(self.files) > 10 else "")
        if self.unread:
            yield f"not read: {', '.join(self.unread)}"
        yield "columns: " + ", ".join(
            f"{column} = {' + '.join(names)}" for column, names in self.columns.items()
        )
        if self.unused:
            yield f"not used: {', '.join(self.unused)}"
        for number, row in enumerate(self.rows, start=1):
            yield f"row {number}"
            for column, value in row.items():
                for text in value if isinstance(value, list) else [value] if value is not None else []:
                    yield f"  {column:<15} {_short(text)}"
        yield from (f"left out: {problem}" for problem in self.bad)


def sample_source(name: str, source: UserSourceConfig, rows: int) -> Sample:
    """The first `rows` good rows of a source of the user's own, and the bad ones before them.

    Raises:
        ConfigError, DataError, ResourceError: as a build would.
    """
    columns = Columns(source.kind, source.columns)
    checker = RowChecker(source.kind, columns, name, source.task_type, source.label_texts)
    good: list[dict[str, Any]] = []
    bad: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rayembed-sample-") as work:
        parts = find_parts(source, Path(work))
        read = ((part, row) for part in parts for row in read_part(part) if row.record is not None)
        for part, row in read:
            for record in unfolded(row.record):
                try:
                    checked = checker.row(record)
                except BadRow as problem:
                    bad.append(f"{part.file.name}:{row.number} ({problem})")
                else:
                    good.append({key: value for key, value in checked.items() if key not in _MADE})
            if len(good) >= rows or len(bad) >= 100:
                break
    if columns.present:
        columns.check(source.origin)
    found = {column: names for column, names in columns.names(columns.present).items() if names}
    files = {part.file.name: part.format for part in parts}
    return Sample(files, unread_files(find_files(source), parts), found, columns.unused(), good[:rows], bad)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."

"""JSON lines, one object a line; an uncompressed file is cut at line ends.

The layouts of FlagEmbedding (`query`, `pos`, `neg`) and Tevatron (`query`, `positive_passages` and
`negative_passages` as objects with `title` and `text`) need no mapping of columns.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import PART_BYTES, Part, Reader, Row, Unreadable, by_suffix
from rayembed.records.locations import StoredFile

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".json.gz")
COMPRESSED = (".gz", ".zst", ".bz2")


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of bytes of about PART_BYTES each; a compressed file is one part."""
    found = []
    for file in files:
        if file.name.lower().endswith(COMPRESSED):
            found.append(Part("json-lines", file))
        else:
            starts = range(0, max(file.size, 1), PART_BYTES)
            found += [Part("json-lines", file, start, start + PART_BYTES) for start in starts]
    return found


def read(part: Part) -> Iterator[Row]:
    """Objects of the lines that begin inside the part."""
    for number, line in enumerate(lines(part), start=1):
        yield Row(number, parse(line) if line.strip() else None)


def parse(line: bytes) -> dict[str, Any] | Unreadable:
    """One line as an object."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return Unreadable("broken encoding", "the line is not UTF-8", line.decode(errors="replace"))
    except json.JSONDecodeError as error:
        return Unreadable(
            "broken JSON", f"{error.msg}, character {error.colno}", line.decode(errors="replace")
        )
    return record if isinstance(record, dict) else Unreadable("wrong type", "not a JSON object", repr(record))


def lines(part: Part) -> Iterator[bytes]:
    """Lines that begin in the part; DataError where the file ends too early."""
    try:
        if part.stop is None:
            with part.file.stream() as stream, io.BufferedReader(stream) as buffered:
                yield from buffered
            return
        with part.file.open() as opened:
            position = part.start
            opened.seek(max(position - 1, 0))
            with io.BufferedReader(opened, 2**20) as buffered:
                if position:  # The line before may reach into this part; it belongs to the part before.
                    position += len(buffered.readline()) - 1
                for line in buffered:
                    if position >= part.stop:
                        return
                    yield line
                    position += len(line)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{part.file.uri} cannot be read to its end ({error}); write it again") from error


READER = Reader("json-lines", SUFFIXES, by_suffix, parts, read)

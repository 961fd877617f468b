"""Parquet files, cut by row groups, and Arrow files such as `save_to_disk` of the `datasets` library writes.

The files are read as they are; that library is not asked, and no code of a folder is run.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.common.stores import open_location
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import PART_BYTES, Part, Reader, Row, Unreadable, refuse_disguise
from rayembed.records.locations import StoredFile


@dataclass(frozen=True)
class ClassNames:
    """Column -> names of its classes, which a file of the hub stores as numbers."""

    names: dict[str, list[str]]

    @staticmethod
    def of(schema: pa.Schema) -> "ClassNames":
        """Class names in the metadata that the `datasets` library writes; none in other files."""
        stored = (schema.metadata or {}).get(b"huggingface")
        features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
        return ClassNames(
            {
                column: feature["names"]
                for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
            }
        )

    def named(self, record: dict[str, Any] | Unreadable) -> dict[str, Any] | Unreadable:
        """The record with names in place of numbers; -1, which means "no class", becomes None."""
        if isinstance(record, Unreadable):
            return record
        for column, names in self.names.items():
            value = record.get(column)
            if isinstance(value, int):
                record[column] = names[value] if 0 <= value < len(names) else None
        return record


_ROWS = 4096  # read at a time


def _parquet_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Runs of row groups of about PART_BYTES each."""
    return [part for file in files for part in _parts_of(file)]


def _parts_of(file: StoredFile) -> Iterator[Part]:
    with open_parquet(file.uri) as opened:
        metadata = opened.metadata
        start, size = 0, 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            if size >= PART_BYTES or group == metadata.num_row_groups - 1:
                yield Part("parquet", file, start, group + 1)
                start, size = group + 1, 0


def open_parquet(uri: str | Path) -> pq.ParquetFile:
    """Open a file; DataError when it is cut short or of another kind."""
    filesystem, path = open_location(str(uri))
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except pa.ArrowException as error:
        with filesystem.open_input_file(path) as opened:
            if not (head := opened.read(32)).startswith(b"PAR1"):
                refuse_disguise(StoredFile(str(uri), path, 0, 0), head)
        raise DataError(
            f"{uri} is not a complete Parquet file ({error}); write or download it again"
        ) from error


def _read_parquet(part: Part) -> Iterator[Row]:
    """Rows of the part's row groups."""
    with open_parquet(part.file.uri) as opened:
        groups = range(part.start, part.stop or opened.metadata.num_row_groups)
        try:
            yield from rows_of(opened.schema_arrow, opened.iter_batches(_ROWS, row_groups=list(groups)))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{part.file.uri} is damaged ({error}); write or download it again") from error


def _arrow_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    return [Part("hugging-face", file) for file in files]


def _read_arrow(part: Part) -> Iterator[Row]:
    """Rows of an Arrow file, in the layout of a stream or of a file."""
    try:
        with part.file.open() as opened:
            if opened.read(6) == b"ARROW1":
                file = pa.ipc.open_file(opened)
                yield from rows_of(file.schema, map(file.get_batch, range(file.num_record_batches)))
                return
            opened.seek(0)
            stream = pa.ipc.open_stream(opened)
            yield from rows_of(stream.schema, stream)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.file.uri} is not a complete Arrow file ({error}); save it again") from error


def rows_of(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    """Rows with the names of classes in place of their numbers."""
    names = ClassNames.of(schema)
    stored_as_bytes = [field.name for field in schema if is_bytes(field.type)]
    records = (record for batch in batches for record in _records(batch))
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict):
            record |= {name: _decoded(record[name]) for name in stored_as_bytes}
        yield Row(number, names.named(record))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, as older writers of Parquet store texts."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Unreadable]:
    """Rows of a batch; one whose bytes are not UTF-8 does not take the others with it."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for position in range(batch.num_rows):
        try:
            yield batch.slice(position, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield Unreadable("broken encoding", "a text is not UTF-8")


PARQUET = Reader("parquet", (".parquet", ".pq"), _parquet_parts, _read_parquet)
ARROW = Reader("hugging-face", (".arrow", ".feather", ".ipc"), _arrow_parts, _read_arrow)

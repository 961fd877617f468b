"""Names of classes that a Hugging Face file stores as numbers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import PART_BYTES, Part, Reader, Row, Unreadable, by_suffix
from rayembed.records.locations import StoredFile


@dataclass(frozen=True)
class ClassNames:
    """Column -> names of its classes, from the metadata that the `datasets` library writes."""

    names: dict[str, list[str]]

    @staticmethod
    def of(schema: pa.Schema) -> "ClassNames":
        """Class names in the metadata of a schema; none in a file of another origin."""
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


SUFFIXES = (".parquet",)
ROWS = 4096  # read at a time


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Runs of row groups of about PART_BYTES each."""
    return [part for file in files for part in _parts_of(file)]


def _parts_of(file: StoredFile) -> Iterator[Part]:
    with open_parquet(file) as opened:
        metadata = opened.metadata
        start, size = 0, 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            if size >= PART_BYTES or group == metadata.num_row_groups - 1:
                yield Part("parquet", file, start, group + 1)
                start, size = group + 1, 0


def open_parquet(file: StoredFile) -> pq.ParquetFile:
    """Open a file; DataError when it is cut short or of another kind."""
    try:
        return pq.ParquetFile(file.open())
    except pa.ArrowException as error:
        raise DataError(
            f"{file.uri} is not a complete Parquet file ({error}); write or download it again"
        ) from error


def read(part: Part) -> Iterator[Row]:
    """Rows of the part's row groups."""
    with open_parquet(part.file) as opened:
        names = ClassNames.of(opened.schema_arrow)
        groups = range(part.start, part.stop or opened.metadata.num_row_groups)
        number = 0
        try:
            for batch in opened.iter_batches(ROWS, row_groups=list(groups)):
                for record in records(batch):
                    number += 1
                    yield Row(number, names.named(record))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{part.file.uri} is damaged ({error}); write or download it again") from error


def records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Unreadable]:
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


READER = Reader("parquet", SUFFIXES, by_suffix, parts, read)

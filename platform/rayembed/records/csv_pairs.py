"""CSV and TSV files with a header line."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row, Unreadable, by_suffix
from rayembed.records.locations import StoredFile

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
LONGEST_FIELD = 2**27  # the default of the csv module, 128 KiB, is below what documents need


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """One part a file: a field may hold line ends, so a file cannot be cut without reading it."""
    return [Part("csv", file) for file in files]


def read(part: Part) -> Iterator[Row]:
    """Rows by the names in the header; a tab separates the fields of a .tsv file, a comma those of others."""
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = "\t" if ".tsv" in part.file.name.lower() else ","
    with decoded_lines(part.file) as text:
        table = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(table, None)
            number = table.line_num + 1
            for fields in table:
                yield Row(number, _record(header or [], fields))
                number = table.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{part.file.uri}:{table.line_num} is not CSV ({error}); quote fields that hold quotes or "
                "line ends"
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{part.file.uri} cannot be read to its end ({error}); write it again") from error


def decoded_lines(file: StoredFile) -> io.TextIOWrapper:
    """Text of a file; bytes that are not UTF-8 become lone surrogates, which validation refuses."""
    buffered = io.BufferedReader(file.stream(), 2**20)
    return io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _record(header: list[str], fields: list[str]) -> dict[str, str] | Unreadable | None:
    if not fields:
        return None
    if len(fields) != len(header):
        return Unreadable("wrong type", f"{len(fields)} fields instead of {len(header)}", repr(fields))
    return dict(zip(header, fields, strict=True))


READER = Reader("csv", SUFFIXES, by_suffix, parts, read)

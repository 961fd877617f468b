"""JSON lines, JSON arrays, CSV, TSV and plain text, compressed or not.

An uncompressed file of JSON lines is cut at line ends. The layouts of FlagEmbedding (`query`, `pos`, `neg`)
and Tevatron (`query`, `positive_passages`, `negative_passages`) need no mapping of columns.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import PART_BYTES, CellText, Part, Reader, Row, Unreadable, refuse_disguise
from rayembed.records.locations import StoredFile

_READ = 2**20  # bytes or characters at a time
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def _json_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of bytes of about PART_BYTES each; a compressed file or an array is one part."""
    found = []
    for file in files:
        if file.compressed or (
            file.size > PART_BYTES and file.plain_name.endswith(".json") and is_array(file)
        ):
            found.append(Part("json-lines", file))
        else:
            starts = range(0, max(file.size, 1), PART_BYTES)
            found += [Part("json-lines", file, start, start + PART_BYTES) for start in starts]
    return found


def _read_json(part: Part) -> Iterator[Row]:
    """Objects of the lines that begin inside the part, or of the array that the file is."""
    whole = part.stop is None or part.stop >= part.file.size
    if part.start == 0 and whole and is_array(part.file):
        for number, item in enumerate(_items(part.file), start=1):
            yield Row(number, _object(item))
        return
    for number, line in enumerate(lines(part), start=1):
        if number == 1 and part.start == 0 and line.strip() == b"{":
            raise DataError(
                f"{part.file.uri} has objects that go over several lines; write one object a line (jq -c .), "
                "or one array of objects"
            )
        yield Row(number, parse(line) if line.strip() else None)


def is_array(file: StoredFile) -> bool:
    """Whether a file is one JSON array: it begins with `[`, and its first line is no list by itself."""
    first = next((line for line in lines(Part("json-lines", file)) if line.strip()), b"")
    if first[:2] in _UTF_16:
        raise DataError(f"{file.uri} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if not first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not value or isinstance(value[0], dict)


def _items(file: StoredFile) -> Iterator[Any]:
    """Items of a JSON array, without having all in memory."""
    decoder, buffer, wanted = json.JSONDecoder(), "", _READ
    with decoded_text(file) as text:
        buffer = text.read(_READ).lstrip()[1:]
        while True:
            buffer = buffer.lstrip(" \t\r\n,")
            if buffer.startswith("]"):
                if more := f"{buffer[1:]}{_read_on(text, file, _READ)}".strip():
                    raise DataError(
                        f"{file.uri} goes on behind its array, with {more[:40]!r}; write one array"
                    )
                return
            try:
                item, end = decoder.raw_decode(buffer)
            except (ValueError, RecursionError) as error:
                broken = isinstance(error, json.JSONDecodeError)  # else too deep, or a number of many digits
                more = _read_on(text, file, wanted) if broken else ""
                if not more:
                    raise DataError(f"{file.uri} is an array that is broken JSON ({error})") from error
                buffer, wanted = buffer + more, wanted * 2  # an item that is longer than what was read
                continue
            yield item
            buffer, wanted = buffer[end:], _READ


def _read_on(text: io.TextIOWrapper, file: StoredFile, size: int) -> str:
    try:
        return text.read(size)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _cut(file, error) from error


def parse(line: bytes) -> dict[str, Any] | Unreadable:
    """One line as an object."""
    try:
        return _object(json.loads(line))
    except UnicodeDecodeError:
        return Unreadable("broken encoding", "the line is not UTF-8", line.decode(errors="replace"))
    except (ValueError, RecursionError) as error:  # also what is too deep, or a number of many digits
        where = f"{error.msg}, character {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        return Unreadable("broken JSON", str(where), line.decode(errors="replace"))


def _object(value: Any) -> dict[str, Any] | Unreadable:
    return value if isinstance(value, dict) else Unreadable("wrong type", "not a JSON object", repr(value))


def lines(part: Part) -> Iterator[bytes]:
    """Lines that begin in the part; DataError where the file ends too early."""
    try:
        if part.stop is None:
            with part.file.stream() as stream, io.BufferedReader(stream) as buffered:
                refuse_disguise(part.file, buffered.peek(32)[:32])
                yield from buffered
            return
        with part.file.open() as opened:
            position = part.start
            opened.seek(max(position - 1, 0))
            with io.BufferedReader(opened, _READ) as buffered:
                if position == 0:
                    refuse_disguise(part.file, buffered.peek(32)[:32])
                else:  # The line before may reach into this part; it belongs to the part before.
                    position += len(buffered.readline()) - 1
                for line in buffered:
                    if position >= part.stop:
                        return
                    yield line
                    position += len(line)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _cut(part.file, error) from error


def _cut(file: StoredFile, error: Exception) -> DataError:
    return DataError(f"{file.uri} cannot be read to its end ({error}); write it again")


def decoded_text(file: StoredFile) -> io.TextIOWrapper:
    """Text of a file; bytes that are not UTF-8 become lone surrogates, which validation refuses."""
    buffered = io.BufferedReader(file.stream(), _READ)
    try:
        head = buffered.peek(32)[:32]
        encoding = "utf-16" if head[:2] in _UTF_16 else "utf-8-sig"
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _cut(file, error) from error
    refuse_disguise(file, head)
    return io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")


JSON = Reader("json-lines", (".jsonl", ".json", ".ndjson", ".jsonlines", ".jl"), _json_parts, _read_json)


def _text_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    return [replace(part, format="text") for part in _json_parts(source, files, work)]


def _read_text(part: Part) -> Iterator[Row]:
    """The lines that begin inside the part, as a column `text`."""
    for number, line in enumerate(lines(part), start=1):
        if number == 1 and part.start == 0 and line[:2] in _UTF_16:
            raise DataError(f"{part.file.uri} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
        try:
            text = line.decode().strip("\ufeff\r\n")
        except UnicodeDecodeError:
            yield Row(
                number, Unreadable("broken encoding", "the line is not UTF-8", line.decode(errors="replace"))
            )
            continue
        yield Row(number, {"text": text} if text.strip() else None)


TEXT = Reader("text", (".txt",), _text_parts, _read_text)

_LONGEST_FIELD = 2**27  # the default of the csv module, 128 KiB, is below what documents need


def _csv_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """One part a file: a field may hold line ends, so a file cannot be cut without reading it."""
    return [Part("csv", file) for file in files]


def _read_csv(part: Part) -> Iterator[Row]:
    """Rows by the names in the header; a blank cell has no value."""
    csv.field_size_limit(_LONGEST_FIELD)
    file = part.file
    with decoded_text(file) as text:
        first, before = _header(text)
        delimiter = _delimiter(file, first)
        quoted = delimiter != "\t" or _has_quotes(file)
        table = csv.reader(
            chain([first], text),
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
        try:
            header = [name.strip() for name in map(_unquoted, next(table, []))]
            if twice := [name for name in header if header.count(name) > 1 and name]:
                raise DataError(f"{file.uri} has two columns {twice[0]!r}; rename one")
            number = before + table.line_num + 1
            for fields in table:
                yield Row(number, _record(header, fields if quoted else list(map(_unquoted, fields))))
                number = before + table.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{file.uri}:{before + table.line_num} is not CSV ({error}); put quotes around fields with "
                'quotes or line ends, and write a quote inside as ""'
            ) from error
        except (OSError, EOFError, pa.ArrowException) as error:
            raise _cut(file, error) from error


def _header(text: io.TextIOWrapper) -> tuple[str, int]:
    """The line of names, and the number of lines before it: blank ones, and the `sep=;` of Excel."""
    for before, line in enumerate(text):
        if line.strip() and not re.fullmatch(r"sep=.\s*", line.lower()):
            return line, before
    return "", 0


def _delimiter(file: StoredFile, header: str) -> str:
    """That of the suffix, or where the header has none of it, the one that the header has."""
    usual = "\t" if file.plain_name.endswith((".tsv", ".tab")) else ","
    others = [mark for mark in "\t;,|" if mark in header]
    return usual if usual in header or len(others) != 1 else others[0]


def _has_quotes(file: StoredFile) -> bool:
    """Whether quotes enclose the fields of a tab-separated file.

    They do not where every line has the same number of tabs, though quotes could pair up by chance:

        query<TAB>positive
        "Stop sign colour<TAB>Red.          a quote that nobody closes
        What is 6"<TAB>Six inches.          and one that closes nothing

    Else they do where all rows have the same number of fields with them.
    """
    with decoded_text(file) as text:
        if len({line.count("\t") for line in text if line.strip()}) <= 1:
            return False
    with decoded_text(file) as text:
        try:
            return (
                len({len(fields) for fields in csv.reader(text, delimiter="\t", strict=True) if fields}) == 1
            )
        except csv.Error:
            return False


def _unquoted(field: str) -> str:
    """A field without the quotes that a writer of CSV put around it: only quotes inside made it do so."""
    if re.fullmatch(r'"(?:[^"]|"")*""(?:[^"]|"")*"', field):
        return field[1:-1].replace('""', '"')
    return field


def _record(header: list[str], fields: list[str]) -> dict[str, CellText | None] | Unreadable | None:
    if not fields or [field.strip() for field in fields] == header:  # a header again, of files put together
        return None
    if len(fields) > len(header) and not any(map(str.strip, fields[len(header) :])):
        fields = fields[: len(header)]
    if len(fields) != len(header):
        return Unreadable("wrong type", f"{len(fields)} fields instead of {len(header)}", repr(fields))
    return {
        name: CellText(field) if field.strip() else None for name, field in zip(header, fields, strict=True)
    }


CSV = Reader("csv", (".csv", ".tsv", ".tab"), _csv_parts, _read_csv)

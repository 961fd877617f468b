"""Rows of a job's files: texts, kept columns, and what is wrong with a row."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.engine.bulk.inputs import ROWS_PER_OFFSET, InputRows, Piece, buffered, streamed
from rayembed.records import Unreadable
from rayembed.records.columnar import PARQUET, is_bytes, open_parquet

BadRows = Literal["error", "skip", "null-vector"]
ROW_FIELD = pa.field("row", pa.int64())
_ROWS_PER_READ = 8192
_ROWS_TO_INFER = 1000  # of JSON lines, whose columns have no declared type


@dataclass(frozen=True)
class Rows:
    """Consecutive rows.

    Attributes:
        texts: text of each row; meaningless where there is a problem.
        columns: number of each row in the whole input (`ROW_FIELD`), and the kept columns.
        problems: position within the rows -> what is wrong with the row.
    """

    texts: list[str]
    columns: pa.Table
    problems: dict[int, str]


def kept_schema(rows: InputRows, text_column: str, keep: Sequence[str]) -> pa.Schema:
    """Names and types of the columns `keep`, which are the same in all files.

    Types of JSON lines are those of the first rows.

    Raises:
        DataError: a file has no such column or no text column, or the types differ.
    """
    schema: pa.Schema | None = None
    for file in rows.files:
        if not file.rows:
            continue
        found = _columns(Piece(file, 0, min(file.rows, _ROWS_TO_INFER)), text_column, keep, schema)
        if schema is not None and found != schema:
            different = next(field.name for field in found if field.type != schema.field(field.name).type)
            raise DataError(
                f"column {different!r} is {found.field(different).type} in {file.path} and "
                f"{schema.field(different).type} in {rows.files[0].path}; write the files with one type"
            )
        schema = found
    assert schema is not None, "inputs without rows are refused"
    return schema


def read_rows(rows: InputRows, start: int, stop: int, text_column: str, kept: pa.Schema) -> Rows:
    """Rows `start` up to `stop`.

    Raises:
        DataError: a kept column has a value of another type than its first rows.
    """
    texts: list[str] = []
    problems: dict[int, str] = {}
    tables = []
    for piece in rows.pieces(start, stop):
        values, columns, broken = _read_piece(piece, text_column, kept)
        problems |= {len(texts) + position: problem for position, problem in broken.items()}
        numbers = pa.array(range(start + len(texts), start + len(texts) + len(values)), pa.int64())
        tables.append(pa.table([numbers, *columns], schema=kept.insert(0, ROW_FIELD)))
        for value in values:
            if problem := _problem(value):
                problems[len(texts)] = problem
            texts.append(value)
    return Rows(texts, pa.concat_tables(tables), problems)


def _columns(piece: Piece, text_column: str, keep: Sequence[str], first: pa.Schema | None) -> pa.Schema:
    """Types of the kept columns in one file; checks that it has a column of texts."""
    if not PARQUET.takes(piece.file.stored):
        if first is not None:
            return first
        records = [record if isinstance(record, dict) else {} for record in _records(piece)]
        names = {name for record in records for name in record}
        if not names:
            raise DataError(
                f"{piece.file.path}: none of its first rows is a JSON object in UTF-8; convert it"
            )
        _require([text_column, *keep], names, piece)
        return pa.schema([(name, _inferred_type(records, name, piece)) for name in keep])
    with open_parquet(piece.file.path) as parquet:
        schema = parquet.schema_arrow
    _require([text_column, *keep], schema.names, piece)
    kind = schema.field(text_column).type
    if not _is_text(kind):
        raise DataError(
            f"column {text_column!r} of {piece.file.path} holds {kind}, not texts; name another column"
        )
    return pa.schema([schema.field(name).with_nullable(True).remove_metadata() for name in keep])


def _require(wanted: Sequence[str], names: Any, piece: Piece) -> None:
    for name in wanted:
        if name not in names:
            raise DataError(
                f"{piece.file.path} has no column {name!r}; it has {', '.join(sorted(names)) or 'none'}"
            )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        is_bytes(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _inferred_type(records: list[dict], name: str, piece: Piece) -> pa.DataType:
    values = [record.get(name) for record in records]
    try:
        kind = pa.array([None if _is_broken(value) else value for value in values]).type
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"column {name!r} of {piece.file.path} mixes types ({error}); do not keep it, or convert it"
        ) from error
    return pa.string() if pa.types.is_null(kind) else kind


def _read_piece(
    piece: Piece, text_column: str, kept: pa.Schema
) -> tuple[list[Any], list[pa.Array], dict[int, str]]:
    """Texts, kept columns, and what is wrong with those; a text is whatever stands in its place."""
    if PARQUET.takes(piece.file.stored):
        table = _read_parquet(piece, list(dict.fromkeys([text_column, *kept.names])))
        texts = table[text_column]
        if is_bytes(texts.type):  # as older writers of Parquet store them; `_texts` finds what is not UTF-8
            texts = texts.cast(pa.large_string(), safe=False)
        return _texts(texts), [table[field.name].cast(field.type) for field in kept], {}
    records = list(_records(piece))
    rows = [record if isinstance(record, dict) else {} for record in records]
    texts = [record.get(text_column) if isinstance(record, dict) else record for record in records]
    broken: dict[int, str] = {}
    for name in kept.names:
        for position, row in enumerate(rows):
            if _is_broken(row.get(name)):
                broken[position] = f"half a Unicode character in {name!r}"
                rows[position] = row | {name: None}
    return texts, [_column(rows, field, piece) for field in kept], broken


def _texts(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column; one that is not UTF-8 does not take the others with it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if len(column) == 1:
            return [Unreadable("text is not UTF-8", "")]
        return [text for position in range(len(column)) for text in _texts(column.slice(position, 1))]


_SURROGATE = re.compile("[\ud800-\udfff]")


_DEEPEST = 50


def _is_broken(value: Any, depth: int = 0) -> bool:
    """Whether some text of a JSON value cannot be written as UTF-8; DataError for what is nested too deep."""
    if isinstance(value, str):
        return bool(_SURROGATE.search(value))
    if not isinstance(value, dict | list):
        return False
    if depth == _DEEPEST:
        raise DataError(f"a kept column is nested more than {_DEEPEST} deep; do not keep it")
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return any(_is_broken(one, depth + 1) for one in inner)


def _read_parquet(piece: Piece, columns: list[str]) -> pa.Table:
    """The rows of a piece; reads only the row groups that hold them, and those in small batches."""
    with open_parquet(piece.file.path) as parquet:
        groups, first, position = [], 0, 0
        for group in range(parquet.metadata.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if position + rows > piece.start and position < piece.stop:
                groups.append(group)
            elif position + rows <= piece.start:
                first = position + rows
            position += rows
        batches, position = [], first
        for batch in parquet.iter_batches(_ROWS_PER_READ, row_groups=groups, columns=columns):
            if position >= piece.stop:
                break
            begin, end = max(piece.start - position, 0), min(piece.stop - position, batch.num_rows)
            if begin < end:
                batches.append(batch.slice(begin, end - begin))
            position += batch.num_rows
    return pa.Table.from_batches(batches)


_NOT_JSON = Unreadable("not a JSON object", "")


def _records(piece: Piece) -> Iterator[Any]:
    """Records of a piece; `Unreadable` for what is none."""
    if not piece.file.offsets:
        yield from islice(streamed(piece.file.path), piece.start, piece.stop)
        return
    seek, skipped = divmod(piece.start, ROWS_PER_OFFSET)
    with buffered(piece.file.stored) as stream:
        stream.seek(piece.file.offsets[seek])
        lines = (line for line in stream if not line.isspace())
        for line in islice(lines, skipped, skipped + piece.stop - piece.start):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
                record = None
            yield record if isinstance(record, dict) else _NOT_JSON


def _column(rows: list[dict], field: pa.Field, piece: Piece) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    try:
        for value in values:
            _refuse_cut(value, field.type)
        return pa.array(values, type=field.type)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"column {field.name!r} is {field.type} in the first rows, and another type between rows "
            f"{piece.start + 1} and {piece.stop} of {piece.file.path} ({error}); convert or do not keep it"
        ) from error


def _refuse_cut(value: Any, kind: pa.DataType) -> None:
    """Raise ValueError for what pyarrow cuts off without a word: fractions, and new fields of objects."""
    if isinstance(value, float) and pa.types.is_integer(kind) and not value.is_integer():
        raise ValueError(f"{value} is no whole number")
    if isinstance(value, list) and pa.types.is_list(kind):
        for one in value:
            _refuse_cut(one, kind.value_type)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        known = {kind.field(position).name: kind.field(position).type for position in range(kind.num_fields)}
        if new := value.keys() - known.keys():
            raise ValueError(f"the field {min(new)} is new")
        for name, one in value.items():
            _refuse_cut(one, known[name])


def _problem(value: Any) -> str | None:
    """What is wrong with a row whose text is `value`, in words that are the same for all such rows."""
    if isinstance(value, Unreadable):
        return value.reason
    if not isinstance(value, str):
        return "no text" if value is None else "text is not a string"
    if not value.strip():
        return "empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a Unicode character"
    return None

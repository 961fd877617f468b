"""Texts and judgements by id, out of files of any format and of usual names of columns."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Unreadable
from rayembed.records.columnar import ARROW, PARQUET
from rayembed.records.columns import folded, is_missing
from rayembed.records.locations import StoredFile
from rayembed.records.text_files import CSV, JSON, decoded_text

_DOCUMENT = ("corpus_id", "doc_id", "docid", "document_id", "pid", "passage_id", "docno", "did")
_QUERY = ("query_id", "qid", "topic_id", "topic")
_SPELLINGS = {
    "query-id": _QUERY,
    "corpus-id": _DOCUMENT,
    "score": ("score", "relevance", "rel", "label", "grade"),
    "_id": ("_id", "id", *_DOCUMENT, *_QUERY),
    "title": ("title",),
    "text": ("text", "contents", "content", "body", "passage", "document", "query", "question"),
}
_NO_NAMES: Mapping[str, str] = {}

TABLES = (JSON, CSV, PARQUET, ARROW)


def read_judgements(file: StoredFile, names: Mapping[str, str] = _NO_NAMES) -> dict[str, dict[str, float]]:
    """Query id -> document id -> grade, in the order of the file.

    A line is query, document and grade; with a field of TREC between the first two; under any header or none.
    Tables have these as columns, or are `{"q1": {"d1": 1}}`.

    Args:
        file: the judgements.
        names: query-id, corpus-id, score -> column of the file, where it has no usual name.

    Raises:
        DataError: a line of another form, two grades for one document, or no judgement.
    """
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    found = _judgement_columns(file, names) if _takes(file) else _judgement_lines(file, names)
    for number, query, document, grade_text in found:
        grade = grade_of(grade_text)
        if grade is None or not query or not document:
            raise DataError(f"{file.uri}:{number} is not query-id, corpus-id and score; correct the line")
        if judged[query].setdefault(document, grade) != grade:
            raise DataError(
                f"{file.uri}:{number} gives document {document} of query {query} a second grade; drop one"
            )
    if not judged:
        raise DataError(f"{file.uri} has no judgements")
    return judged


def _judgement_columns(file: StoredFile, names: Mapping[str, str]) -> Iterator[tuple[int, str, str, str]]:
    for number, record in _records(file):
        if record and all(isinstance(value, dict | list) for value in record.values()):
            for query, documents in record.items():
                graded = documents if isinstance(documents, dict) else dict.fromkeys(documents, 1)
                for document, grade in graded.items():
                    yield number, query, document, str(grade)
        else:
            query, document, grade = (
                identifier(_value(record, name, names)) or "" for name in ("query-id", "corpus-id", "score")
            )
            yield number, query, document, grade


def _judgement_lines(file: StoredFile, names: Mapping[str, str]) -> Iterator[tuple[int, str, str, str]]:
    places = [0, -2, -1]
    with decoded_text(file) as text:
        for number, line in enumerate(text, start=1):
            fields = fields_of(line)
            if number == 1 and fields and grade_of(fields[-1]) is None:
                named = [_name(tuple(fields), name, names) for name in ("query-id", "corpus-id", "score")]
                if None not in named:
                    places = [fields.index(str(name)) for name in named]
            elif any(fields):
                query, document, grade = (
                    (fields[place] for place in places) if len(fields) in (3, 4) else ("", "", "")
                )
                yield number, query, document, grade


def fields_of(line: str) -> list[str]:
    """Fields of a line of ids; ids may hold blanks where tabs separate them."""
    text = line.strip()
    if "\t" in text:
        return [
            field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field
            for field in map(str.strip, text.split("\t"))
        ]
    return [field.strip() for field in text.split(",")] if "," in text and " " not in text else text.split()


def grade_of(text: str) -> float | None:
    """A grade as a finite number; None for what is none."""
    try:
        grade = float(text)
    except ValueError:
        return None
    return grade if math.isfinite(grade) else None


def read_collection(file: StoredFile, names: Mapping[str, str] = _NO_NAMES) -> Iterator[tuple[str, str]]:
    """Ids and texts of a collection: records with an id, `title` and `text`; in .tsv also id TAB text.

    A title goes in front of its text, as the BEIR and mteb evaluations do it. A blank text is an empty one.

    Args:
        file: the collection.
        names: _id, title, text -> column of the file, where it has no usual name.

    Raises:
        DataError: a row has no id or no text.
    """
    if file.plain_name.endswith((".tsv", ".tab")) and not _has_header(file, names):
        rows: Iterable[tuple[int, dict[str, Any]]] = _from_tab(file)
    else:
        rows = _unkeyed(_records(file)) if file.plain_name.endswith(".json") else _records(file)
    for number, record in rows:
        key = identifier(_value(record, "_id", names))
        if not key or all(_name(tuple(record), column, names) is None for column in ("title", "text")):
            raise DataError(
                f"{file.uri}:{number} has no id and text in UTF-8; it has {', '.join(record) or 'nothing'}. "
                "Correct the line, or name the columns _id and text"
            )
        title, text = (
            as_text(_value(record, column, names), f"{file.uri}:{number}: {column}")
            for column in ("title", "text")
        )
        yield key, f"{title} {text}".strip()


def second_text(file: StoredFile, key: str) -> DataError:
    """The refusal of an id that stands for two texts."""
    return DataError(f"{file.uri} has two texts with the id {key}; drop one or give it another id")


def as_text(value: Any, what: str) -> str:
    """A value as text: numbers have one way to be written, blank ones are empty.

    Raises:
        DataError: it is something else, or not UTF-8; the message begins with `what`.
    """
    if is_missing(value):
        return ""
    text = None if isinstance(value, bool) else identifier(value)
    if text is None:
        raise DataError(f"{what} is {value!r:.60}, not a text; correct it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is not UTF-8; correct it or convert the file") from None
    return value if isinstance(value, str) else text


def _has_header(file: StoredFile, names: Mapping[str, str]) -> bool:
    with decoded_text(file) as text:
        fields = tuple(fields_of(text.readline()))
    return all(_name(fields, column, names) is not None for column in ("_id", "text"))


def _unkeyed(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows, and in place of `{"d1": {"text": "a"}, "d2": "b"}` the rows that it stands for."""
    for number, record in rows:
        if record and all(isinstance(value, dict) for value in record.values()):
            for key, value in record.items():
                yield number, {"_id": key, **value}
        elif _name(tuple(record), "_id") is None and _name(tuple(record), "text") is None:
            for key, value in record.items():
                yield number, {"_id": key, "text": value}
        else:
            yield number, record


@lru_cache(4096)
def _usual_name(present: tuple[str, ...], column: str) -> str | None:
    by_spelling = {folded(name): name for name in reversed(present)}
    return next((by_spelling[name] for name in _SPELLINGS[column] if name in by_spelling), None)


def _name(present: tuple[str, ...], column: str, names: Mapping[str, str] = _NO_NAMES) -> str | None:
    """The name of a column among those of a file: the declared one, or a usual one."""
    return names[column] if names.get(column) in present else _usual_name(present, column)


def _value(record: Mapping[str, Any], column: str, names: Mapping[str, str]) -> Any:
    name = _name(tuple(record), column, names)
    return None if name is None else record[name]


def _takes(file: StoredFile) -> bool:
    return any(reader.takes(file) for reader in TABLES) and not file.plain_name.endswith((".tsv", ".tab"))


def _records(file: StoredFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of the rows of a file.

    Raises:
        DataError: it is no table, or a row cannot be read.
    """
    reader = next((reader for reader in TABLES if reader.takes(file)), None)
    if reader is None:
        suffixes = ", ".join(suffix for reader in TABLES for suffix in reader.suffixes)
        raise DataError(f"{file.uri} does not end in {suffixes}; convert it")
    nothing = UserSourceConfig(path=file.uri)
    rows = (row for part in reader.parts(nothing, [file], Path()) for row in reader.read(part))
    for number, row in enumerate(rows, start=1):
        if isinstance(row.record, Unreadable):
            raise DataError(f"{file.uri}:{number} cannot be read ({row.record.detail}); correct the line")
        if row.record is not None:
            yield number, row.record


def identifier(value: Any) -> str | None:
    """An id as text: numbers have one way to be written, blanks around it do not count; None for no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (str(value).strip() or None) if isinstance(value, str | int | float) and value == value else None


def _from_tab(file: StoredFile) -> Iterator[tuple[int, dict[str, Any]]]:
    with decoded_text(file) as lines_of_text:
        for number, line in enumerate(lines_of_text, start=1):
            if line.strip():
                key, tab, text = line.rstrip("\r\n").partition("\t")
                yield number, {"_id": key, "text": text} if tab else {}

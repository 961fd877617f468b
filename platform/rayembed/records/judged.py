"""Queries and documents by id: BEIR folders, and triples or judgements over two collections.

A collection may have more texts than memory holds, so they go into an SQLite file that all parts read.
"""

import contextlib
import errno
import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_file
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row, Unreadable
from rayembed.records.columnar import PARQUET
from rayembed.records.layout import canonical, place_of
from rayembed.records.locations import StoredFile, list_files
from rayembed.records.text_files import CSV, JSON, lines

_TEXTS = 10_000  # stored at a time
_QUERIES = 50_000  # of a part of a BEIR folder
_ROLES = {
    "corpus": re.compile(r"(^|/)corpus[./-]"),
    "queries": re.compile(r"(^|/)queries[./-]"),
    "qrels": re.compile(r"(^|/)(qrels|default|data)[/.]"),
}


def is_beir(files: Sequence[StoredFile]) -> bool:
    """Whether a folder has a corpus, queries and judgements."""
    roles = _roles(files)
    return bool(roles["corpus"] and roles["queries"] and roles["qrels"])


def _roles(files: Sequence[StoredFile]) -> dict[str, list[StoredFile]]:
    """The files of a BEIR folder: `corpus.jsonl`, or `corpus/corpus-00000-of-00001.parquet` of a hub."""
    found: dict[str, list[StoredFile]] = defaultdict(list)
    for file in files:
        if any(reader.takes(file) for reader in (JSON, CSV, PARQUET)):
            role = next((role for role, name in _ROLES.items() if name.search(file.plain_name)), "")
            found[role].append(file)
    return found


def _beir_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of the judged queries.

    Raises:
        DataError: the folder has no such file, no judgements of the split, or a line of another form.
    """
    roles = _roles(files)
    splits: dict[str, list[StoredFile]] = defaultdict(list)
    for file in roles["qrels"]:
        splits[place_of(file).split or file.plain_name.rpartition("/")[2]].append(file)
    wanted = canonical(source.split) or (next(iter(splits)) if len(splits) == 1 else None)
    known = ", ".join(sorted(splits)) or "none"
    if wanted is None and splits:
        raise DataError(f"{source.origin} has judgements of the splits {known}; choose one with split")
    if not is_beir(files) or wanted not in splits:
        raise DataError(
            f"{source.origin} is no BEIR folder with corpus.jsonl, queries.jsonl and "
            f"qrels/{source.split or 'SPLIT'}.tsv; judged splits: {known}"
        )
    extra = {name: _build_texts(work / f"{name}.sqlite", roles[name]) for name in ("corpus", "queries")}
    return [
        Part("beir", file, start, start + _QUERIES, extra)
        for file in splits[wanted]
        for start in range(0, max(len(read_judgements(file)), 1), _QUERIES)
    ]


def _read_beir(part: Part) -> Iterator[Row]:
    """One pair row a query: what is judged above zero is a positive, what is not a negative."""
    corpus, queries = Texts(part.extra["corpus"]), Texts(part.extra["queries"])
    judged = list(read_judgements(part.file).items())[part.start : part.stop]
    for number, (query, documents) in enumerate(judged, start=1):
        yield Row(number, _judged_record(query, documents, corpus, queries))


def read_judgements(file: StoredFile) -> dict[str, dict[str, float]]:
    """Query id -> document id -> grade, in the order of the file.

    A line is query, document and grade; with a field of TREC between the first two; under any header or none.

    Raises:
        DataError: a line of another form.
    """
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    for number, fields in _judgement_fields(file):
        grade = _grade(fields[-1]) if len(fields) in (3, 4) else None
        if grade is None:
            raise DataError(f"{file.uri}:{number} is not query-id, corpus-id and score; correct the line")
        judged[fields[0]][fields[-2]] = grade
    return judged


def _judgement_fields(file: StoredFile) -> Iterator[tuple[int, list[str]]]:
    """Query id, perhaps a field of TREC, document id and grade of every line but a header."""
    if not file.plain_name.endswith(".tsv"):
        for number, record in _records(file):
            names = ("query-id", "corpus-id", "score")
            yield number, [identifier(record.get(name)) or "" for name in names]
        return
    turned = False
    for number, line in enumerate(lines(Part("beir", file)), start=1):
        fields = fields_of(line)
        if number == 1 and fields and _grade(fields[-1]) is None:
            turned = bool(re.match("corpus|doc", fields[0].lower()))
        elif fields:
            yield number, [fields[1], fields[0], *fields[2:]] if turned else fields


def fields_of(line: bytes) -> list[str]:
    """Fields of a line of ids; ids may hold blanks where tabs separate them."""
    text = line.decode("utf-8-sig", errors="replace").strip("\r\n")
    return [field.strip() for field in text.split("\t")] if "\t" in text else text.split()


def _grade(text: str) -> float | None:
    try:
        grade = float(text)
    except ValueError:
        return None
    return grade if math.isfinite(grade) else None


def _judged_record(
    query: str, documents: dict[str, float], corpus: "Texts", queries: "Texts"
) -> dict[str, Any] | Unreadable:
    text = queries.get(query)
    if text is None:
        return Unreadable("unknown id", f"query {query}")
    texts = {document: corpus.get(document) for document in documents}
    for document, found in texts.items():
        if found is None:
            return Unreadable("unknown id", f"document {document} of query {query}")
    return {
        "query": text,
        "positives": [texts[document] for document, grade in documents.items() if grade > 0],
        "negatives": [texts[document] for document, grade in documents.items() if grade <= 0],
    }


BEIR = Reader("beir", (), _beir_parts, _read_beir)


def _build_texts(path: Path, files: Sequence[StoredFile]) -> str:
    """Make the SQLite file of all texts in `files`, unless it is there; returns its path.

    Raises:
        DataError: a line has no id or is of another form.
    """
    if path.is_file():
        return str(path)
    try:
        with (
            atomic_file(path) as temporary,
            contextlib.closing(sqlite3.connect(temporary)) as connection,
            connection,
        ):
            connection.execute("pragma journal_mode = off")
            connection.execute("create table texts (id text primary key, text text) without rowid")
            for file in files:
                for batch in _batches(_identified_texts(file)):
                    connection.executemany("insert or replace into texts values (?, ?)", batch)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        raise
    return str(path)


class Texts:
    """Looks texts up by id."""

    def __init__(self, path: str):
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def get(self, identifier: str) -> str | None:
        """Text of an id; None where there is none."""
        row = self._connection.execute("select text from texts where id = ?", (identifier,)).fetchone()
        return row[0] if row else None


def _identified_texts(file: StoredFile) -> Iterator[tuple[str, str]]:
    """Ids and texts of a collection: records with `_id` or `id`, `title`, `text`; in .tsv id TAB text.

    A title goes in front of its text, as the BEIR and mteb evaluations do it.
    """
    for number, pair in _from_tab(file) if file.plain_name.endswith(".tsv") else _from_records(file):
        if pair is None:
            raise DataError(f"{file.uri}:{number} has no id and text in UTF-8; correct the line")
        yield pair


def _from_records(file: StoredFile) -> Iterator[tuple[int, tuple[str, str] | None]]:
    for number, record in _records(file):
        key = identifier(next((record[name] for name in ("_id", "id", "docid") if name in record), None))
        title, text = record.get("title") or "", record.get("text") or ""
        valid = key and "text" in record and isinstance(text, str) and isinstance(title, str)
        yield number, (key, f"{title} {text}".strip()) if key and valid else None


def _records(file: StoredFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of the rows of a file; of a row that cannot be read, nothing."""
    reader = next(reader for reader in (JSON, CSV, PARQUET) if reader.takes(file))
    nothing = UserSourceConfig(path=file.uri)
    rows = (row for part in reader.parts(nothing, [file], Path()) for row in reader.read(part))
    for number, row in enumerate(rows, start=1):
        if row.record is not None:
            yield number, row.record if isinstance(row.record, dict) else {}


def identifier(value: Any) -> str | None:
    """An id as text: numbers have one way to be written; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int | float) and value != "" else None


def _from_tab(file: StoredFile) -> Iterator[tuple[int, tuple[str, str] | None]]:
    for number, line in enumerate(lines(Part("json-lines", file)), start=1):
        if line.strip():
            try:
                key, tab, text = line.decode("utf-8-sig").rstrip("\r\n").partition("\t")
            except UnicodeDecodeError:
                tab = ""
            yield number, (key, text) if tab else None


def _batches(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == _TEXTS:
            yield batch
            batch = []
    yield batch


def _triple_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of bytes of the triples; both collections are made ready for look-ups.

    Raises:
        ConfigError: corpus or queries is not declared.
        DataError: a collection is missing or has a line of another form.
    """
    if source.corpus is None or source.queries is None:
        raise ConfigError("a source of format triples needs corpus and queries, files of ids and texts")
    extra = {
        "corpus": _build_texts(work / "corpus.sqlite", list_files(source.corpus)),
        "queries": _build_texts(work / "queries.sqlite", list_files(source.queries)),
    }
    return [replace(part, format="triples", extra=extra) for part in JSON.parts(source, files, work)]


def _read_triples(part: Part) -> Iterator[Row]:
    """One pair row for each query and positive of the part, with the negatives of all its lines.

    Lines `q1 d1 d2`, `q1 d1 d3` and `q2 d4 d5` give (q1, d1, [d2, d3]) and (q2, d4, [d5]).
    """
    corpus, queries = Texts(part.extra["corpus"]), Texts(part.extra["queries"])
    merged: dict[tuple[str, str], dict[str, None]] = {}
    first: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines(part), start=1):
        fields = _triple(fields_of(line))
        yield Row(number, fields if isinstance(fields, Unreadable) else None)
        if isinstance(fields, list):
            key = (fields[0], fields[1])
            first.setdefault(key, number)
            merged.setdefault(key, {}).update(dict.fromkeys(fields[2:]))
    for key, negatives in merged.items():
        texts = {name: corpus.get(name) for name in (key[1], *negatives)}
        query, positive = queries.get(key[0]), texts[key[1]]
        unknown = [f"document {name}" for name, text in texts.items() if text is None]
        if query is None or positive is None:
            unknown = unknown or [f"query {key[0]}"]
        for what in unknown:
            yield Row(first[key], Unreadable("unknown id", what, " ".join(key)))
        if query is not None and positive is not None:
            known = [texts[name] for name in negatives if texts[name] is not None]
            yield Row(first[key], {"query": query, "positives": [positive], "negatives": known})


def _triple(fields: list[str]) -> list[str] | Unreadable | None:
    """Query, positive and perhaps a negative; None for a blank line or a judgement that is not above zero."""
    if not any(fields):
        return None
    if len(fields) not in (2, 3, 4):
        return Unreadable("wrong type", f"{len(fields)} fields instead of 2, 3 or 4", " ".join(fields))
    if len(fields) < 4:
        return fields
    grade = _grade(fields[3])
    if grade is None:
        return Unreadable("wrong type", f"grade {fields[3]!r} is not a number", " ".join(fields))
    return [fields[0], fields[2]] if grade > 0 else None


TRIPLES = Reader("triples", (), _triple_parts, _read_triples)

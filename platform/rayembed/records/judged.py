"""Queries and documents by id: BEIR folders, and triples or judgements over two collections.

A collection may have more texts than memory holds, so they go into an SQLite file that all parts read.
"""

import contextlib
import errno
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_file, fetch
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row, Unreadable
from rayembed.records.identified import (
    TABLES,
    fields_of,
    grade_of,
    read_collection,
    read_judgements,
    second_text,
)
from rayembed.records.layout import canonical, place_of
from rayembed.records.locations import StoredFile, list_files
from rayembed.records.text_files import JSON, lines

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
        if any(reader.takes(file) for reader in TABLES):
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
    if fetch(path).is_file():
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
                for batch in _batches(read_collection(file)):
                    added = connection.executemany("insert or ignore into texts values (?, ?)", batch)
                    if added.rowcount < len(batch):
                        _refuse_second_texts(connection, batch, file)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        raise
    return str(path)


def _refuse_second_texts(
    connection: sqlite3.Connection, batch: list[tuple[str, str]], file: StoredFile
) -> None:
    for key, text in batch:
        (first,) = connection.execute("select text from texts where id = ?", (key,)).fetchone()
        if first != text:
            raise second_text(file, key)


class Texts:
    """Looks texts up by id, on any node."""

    def __init__(self, path: str):
        self._connection = sqlite3.connect(f"{fetch(path).as_uri()}?mode=ro", uri=True)

    def get(self, identifier: str) -> str | None:
        """Text of an id; None where there is none."""
        row = self._connection.execute("select text from texts where id = ?", (identifier,)).fetchone()
        return row[0] if row else None


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
        fields = _triple(fields_of(line.decode("utf-8-sig", errors="replace")))
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
    grade = grade_of(fields[3])
    if grade is None:
        return Unreadable("wrong type", f"grade {fields[3]!r} is not a number", " ".join(fields))
    return [fields[0], fields[2]] if grade > 0 else None


TRIPLES = Reader("triples", (), _triple_parts, _read_triples)

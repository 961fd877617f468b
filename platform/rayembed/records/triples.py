"""Texts by id, on disk: what BEIR folders and triples by id are joined with.

A collection may have more texts than memory holds, so they go into an SQLite file that all parts read.
"""

import contextlib
import errno
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_file
from rayembed.config.data import UserSourceConfig
from rayembed.records import json_lines
from rayembed.records.base import Part, Reader, Row, Unreadable, by_suffix
from rayembed.records.json_lines import SUFFIXES as JSON_SUFFIXES
from rayembed.records.json_lines import lines, parse
from rayembed.records.locations import StoredFile, list_files

BATCH = 10_000


def build_texts(path: Path, files: Sequence[StoredFile]) -> str:
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
                for batch in _batches(identified_texts(file)):
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


def identified_texts(file: StoredFile) -> Iterator[tuple[str, str]]:
    """Ids and texts of a collection: JSON lines with `_id` or `id`, `title`, `text`; else id TAB text.

    A title goes in front of its text, as the BEIR and mteb evaluations do it.
    """
    read = _from_json if file.name.lower().endswith(JSON_SUFFIXES) else _from_tab
    for number, line in enumerate(lines(Part("json-lines", file)), start=1):
        if line.strip():
            pair = read(line)
            if pair is None:
                raise DataError(f"{file.uri}:{number} has no id and text in UTF-8; correct the line")
            yield pair


def _from_json(line: bytes) -> tuple[str, str] | None:
    record = parse(line)
    if isinstance(record, Unreadable):
        return None
    identifier, text = record.get("_id", record.get("id")), record.get("text")
    title = record.get("title") or ""
    if not isinstance(identifier, str | int) or not isinstance(text, str) or not isinstance(title, str):
        return None
    return str(identifier), f"{title} {text}".strip()


def _from_tab(line: bytes) -> tuple[str, str] | None:
    try:
        identifier, tab, text = line.decode().rstrip("\r\n").partition("\t")
    except UnicodeDecodeError:
        return None
    return (identifier, text) if tab else None


def _batches(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of bytes of the triples; both collections are made ready for look-ups.

    Raises:
        ConfigError: corpus or queries is not declared.
        DataError: a collection is missing or has a line of another form.
    """
    if source.corpus is None or source.queries is None:
        raise ConfigError("a source of format triples needs corpus and queries, files of ids and texts")
    extra = {
        "corpus": build_texts(work / "corpus.sqlite", list_files(source.corpus)),
        "queries": build_texts(work / "queries.sqlite", list_files(source.queries)),
    }
    cut = json_lines.parts(source, files, work)
    return [replace(part, format="triples", extra=extra) for part in cut]


def read(part: Part) -> Iterator[Row]:
    """One pair row a line."""
    corpus, queries = Texts(part.extra["corpus"]), Texts(part.extra["queries"])
    for number, line in enumerate(json_lines.lines(part), start=1):
        fields = line.decode(errors="replace").split()
        yield Row(number, _record(fields, corpus, queries) if fields else None)


def _record(fields: list[str], corpus: Texts, queries: Texts) -> dict[str, Any] | Unreadable | None:
    line = " ".join(fields)
    if len(fields) not in (2, 3, 4):
        return Unreadable("wrong type", f"{len(fields)} fields instead of 2, 3 or 4", line)
    query, *documents = fields
    if len(fields) == 4:
        documents, grade = [fields[2]], fields[3]
        if not grade.lstrip("-").isdigit():
            return Unreadable("wrong type", f"grade {grade!r} is not a number", line)
        if int(grade) <= 0:
            return None
    query_text, texts = queries.get(query), [corpus.get(document) for document in documents]
    if query_text is None:
        return Unreadable("unknown id", f"query {query}", line)
    for document, text in zip(documents, texts, strict=True):
        if text is None:
            return Unreadable("unknown id", f"document {document}", line)
    return {"query": query_text, "positives": texts[:1], "negatives": texts[1:]}


READER = Reader("triples", (), by_suffix, parts, read)

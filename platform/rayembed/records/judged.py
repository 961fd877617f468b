"""Queries and documents by id: BEIR folders, and triples or judgements over two collections.

A collection may have more texts than memory holds, and a file of triples more lines, so they go into SQLite
files that all parts read.
"""

import contextlib
import errno
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

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
from rayembed.records.text_files import lines

_AT_A_TIME = 10_000  # texts and lines that are stored
_QUERIES = 50_000  # of a part
Item = TypeVar("Item")
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
    with _new_database(path) as connection:
        connection.execute("create table texts (id text primary key, text text) without rowid")
        for file in files:
            for batch in _batches(read_collection(file)):
                added = connection.executemany("insert or ignore into texts values (?, ?)", batch)
                if added.rowcount < len(batch):
                    _refuse_second_texts(connection, batch, file)
    return str(path)


@contextlib.contextmanager
def _new_database(path: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite file to be filled, which appears when it is complete."""
    try:
        with (
            atomic_file(path) as temporary,
            contextlib.closing(sqlite3.connect(temporary)) as connection,
            connection,
        ):
            connection.execute("pragma journal_mode = off")
            yield connection
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        raise


def _open_database(path: str) -> sqlite3.Connection:
    """An SQLite file on any node, to be read."""
    return sqlite3.connect(f"{fetch(path).as_uri()}?mode=ro", uri=True)


def _refuse_second_texts(
    connection: sqlite3.Connection, batch: Sequence[tuple[str, str]], file: StoredFile
) -> None:
    for key, text in batch:
        (first,) = connection.execute("select text from texts where id = ?", (key,)).fetchone()
        if first != text:
            raise second_text(file, key)


class Texts:
    """Looks texts up by id."""

    def __init__(self, path: str):
        self._connection = _open_database(path)

    def get(self, identifier: str) -> str | None:
        """Text of an id; None where there is none."""
        row = self._connection.execute("select text from texts where id = ?", (identifier,)).fetchone()
        return row[0] if row else None


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    items = iter(items)
    while batch := list(islice(items, _AT_A_TIME)):
        yield batch


def _triple_parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of the queries of each file; both collections are made ready for look-ups.

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
    parts = []
    for position, file in enumerate(files):
        path = _group_triples(work / f"triples-{position}.sqlite", file)
        with contextlib.closing(_open_database(path)) as grouped:
            (queries,) = grouped.execute("select count(*) from queries").fetchone()
        parts += [
            Part("triples", file, start, start + _QUERIES, extra | {"triples": path})
            for start in range(0, max(queries, 1), _QUERIES)
        ]
    return parts


def _group_triples(path: Path, file: StoredFile) -> str:
    """Make the SQLite file of the lines of `file` by their queries, unless it is there; returns its path.

    The lines of a query are all over the file, and there are more than memory holds: SQLite sorts them.
    """
    if fetch(path).is_file():
        return str(path)
    with _new_database(path) as connection:
        connection.execute("create table broken (line integer, detail text, text text)")
        connection.execute("create temp table lines (query text, document text, positive int, line int)")
        for batch in _batches(_judged_lines(file)):
            broken = [(line, one.detail, one.text) for line, one in batch if isinstance(one, Unreadable)]
            judged = [
                (one[0], document, place == 0, line)
                for line, one in batch
                if isinstance(one, list)
                for place, document in enumerate(one[1:])
            ]
            connection.executemany("insert into broken values (?, ?, ?)", broken)
            connection.executemany("insert into lines values (?, ?, ?, ?)", judged)
        connection.execute(
            "create table pairs (query text, positive int, line int, document text, "
            "primary key (query, positive, line)) without rowid"
        )
        connection.execute(
            "insert into pairs select query, positive, min(line), document from lines "
            "group by query, positive, document"
        )
        connection.execute("create table queries (number integer primary key, query text)")
        connection.execute("insert into queries (query) select distinct query from pairs order by query")
    return str(path)


def _judged_lines(file: StoredFile) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """Number and content of the lines that say something."""
    for number, line in enumerate(lines(Part("triples", file)), start=1):
        found = _triple(fields_of(line.decode("utf-8-sig", errors="replace")))
        if found is not None:
            yield number, found


def _read_triples(part: Part) -> Iterator[Row]:
    """One pair row a query, with the positives and negatives of all its lines.

    Lines `q1 d1 d2`, `q2 d4 d5` and `q1 d1 d3` give (q1, [d1], [d2, d3]) and (q2, [d4], [d5]).
    """
    yield from (Row(number, record) for number, record in enumerate(_grouped(part), start=1))


def _grouped(part: Part) -> Iterator[dict[str, Any] | Unreadable]:
    corpus, queries = Texts(part.extra["corpus"]), Texts(part.extra["queries"])
    database = _open_database(part.extra["triples"])
    if part.start == 0:
        for line, detail, text in database.execute("select line, detail, text from broken order by line"):
            yield Unreadable("wrong type", f"line {line} has {detail}", text)
    found = database.execute(
        "select query, positive, line, document from queries join pairs using (query) "
        "where number > ? and number <= ? order by number, line",
        (part.start, part.stop),
    )
    for query, judged in groupby(found, key=itemgetter(0)):
        text = queries.get(query)
        if text is None:
            yield Unreadable("unknown id", f"query {query}")
            continue
        texts: dict[bool, list[str]] = {True: [], False: []}
        for _, positive, line, document in judged:
            if (known := corpus.get(document)) is None:
                yield Unreadable("unknown id", f"document {document} of query {query} in line {line}")
            else:
                texts[bool(positive)].append(known)
        if texts[True]:  # else its positives are all counted as unknown
            yield {"query": text, "positives": texts[True], "negatives": texts[False]}


def _triple(fields: list[str]) -> list[str] | Unreadable | None:
    """Query, positive and perhaps a negative; None for a blank line or a judgement that is not above zero."""
    if not any(fields):
        return None
    if len(fields) not in (2, 3, 4):
        return Unreadable("wrong type", f"{len(fields)} fields, not 2, 3 or 4", " ".join(fields))
    if len(fields) < 4:
        return fields
    grade = grade_of(fields[3])
    if grade is None:
        return Unreadable("wrong type", f"grade {fields[3]!r}, not a number", " ".join(fields))
    return [fields[0], fields[2]] if grade > 0 else None


TRIPLES = Reader("triples", (), _triple_parts, _read_triples)

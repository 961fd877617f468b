"""Triples by id, as MS MARCO has them: query id, positive id, negative id, with the texts in other files.

Lines are separated by tabs. Three fields are a triple, two a query and its positive, and four a judgement of
TREC (query, 0, document, grade above zero for a positive).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError
from rayembed.config import UserSourceConfig
from rayembed.records import json_lines
from rayembed.records.base import Part, Reader, Row, Unreadable, by_suffix
from rayembed.records.locations import StoredFile, list_files
from rayembed.records.texts import Texts, build_texts


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of bytes of the triples; both collections are made ready for look-ups.

    Raises:
        ConfigError: corpus or queries is not declared.
        DataError: a collection is missing or has a line of another form.
    """
    if source.corpus is None or source.queries is None:
        raise ConfigError("a source of format triples needs corpus and queries, files of ids and texts")
    beside = {
        "corpus": build_texts(work / "corpus.sqlite", list_files(source.corpus)),
        "queries": build_texts(work / "queries.sqlite", list_files(source.queries)),
    }
    cut = json_lines.parts(source, files, work)
    return [replace(part, format="triples", beside=beside) for part in cut]


def read(part: Part) -> Iterator[Row]:
    """One pair row a line."""
    corpus, queries = Texts(part.beside["corpus"]), Texts(part.beside["queries"])
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

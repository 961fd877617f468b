"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

Documents that are judged above zero are the positives of a query, those judged zero or below its negatives.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row, Unreadable
from rayembed.records.json_lines import lines
from rayembed.records.locations import StoredFile
from rayembed.records.triples import Texts, build_texts

QUERIES = 50_000  # of a part


def recognises(files: Sequence[StoredFile]) -> bool:
    """A corpus, queries and judgements."""
    names = {file.name.removesuffix(".gz") for file in files}
    return {"corpus.jsonl", "queries.jsonl"} <= names and any(name.startswith("qrels/") for name in names)


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Ranges of the judged queries.

    Raises:
        DataError: the folder has no such file, no judgements of the split, or a line of another form.
    """
    by_name = {file.name.removesuffix(".gz"): file for file in files}
    judged = by_name.get(f"qrels/{source.split}.tsv")
    if judged is None or not recognises(files):
        splits = ", ".join(sorted(name[6:-4] for name in by_name if name.startswith("qrels/"))) or "none"
        raise DataError(
            f"{source.path} is no BEIR folder with corpus.jsonl, queries.jsonl and qrels/{source.split}.tsv; "
            f"judged splits: {splits}"
        )
    extra = {
        "corpus": build_texts(work / "corpus.sqlite", [by_name["corpus.jsonl"]]),
        "queries": build_texts(work / "queries.sqlite", [by_name["queries.jsonl"]]),
    }
    starts = range(0, max(len(read_judgements(judged)), 1), QUERIES)
    return [Part("beir", judged, start, start + QUERIES, extra) for start in starts]


def read(part: Part) -> Iterator[Row]:
    """One pair row a query."""
    corpus, queries = Texts(part.extra["corpus"]), Texts(part.extra["queries"])
    judged = list(read_judgements(part.file).items())[part.start : part.stop]
    for number, (query, documents) in enumerate(judged, start=1):
        yield Row(number, _record(query, documents, corpus, queries))


def read_judgements(file: StoredFile) -> dict[str, dict[str, float]]:
    """Query id -> document id -> grade, in the order of the file.

    A line is query, document and grade; with a TREC field between the first two; under any header or none.

    Raises:
        DataError: a line of another form.
    """
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    for number, line in enumerate(lines(Part("beir", file)), start=1):
        text = line.decode("utf-8-sig", errors="replace").strip("\r\n")
        fields = text.split("\t") if "\t" in text else text.split()
        try:
            if fields:
                query, *_, document, grade = fields
                judged[query.strip()][document.strip()] = float(grade)
        except ValueError:
            if number > 1:
                raise DataError(
                    f"{file.uri}:{number} is not query-id, corpus-id and score; correct the line"
                ) from None
    return judged


def _record(
    query: str, documents: dict[str, float], corpus: Texts, queries: Texts
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


READER = Reader("beir", (), recognises, parts, read)

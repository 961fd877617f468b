"""The distinct queries and documents of a source, and which documents are no candidates for which query.

Shapes: R rows, Q distinct queries, N distinct documents.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayembed.common.errors import DataError
from rayembed.common.paths import fetch, resolve
from rayembed.config.data import DataConfig, UserSourceConfig
from rayembed.data.build import build_any
from rayembed.data.store import built_in_source, read_split
from rayembed.mining.config import SourceMining
from rayembed.mining.excluded import Excluded
from rayembed.records import find_parts, read_part
from rayembed.records.locations import list_files
from rayembed.records.schema import document_id

logger = logging.getLogger(__name__)

_TEXTS_PER_CHUNK = 65_536
_NO_TEXTS = pa.array([], pa.large_string())


@dataclass(frozen=True)
class Collection:
    """What is searched for one source. Rows share a query if its text and their own instruction are equal.

    Attributes:
        queries: texts of the Q queries.
        instructions: their own instructions (Q), "" for a query that has the source's.
        documents: texts of the N documents: positives, then given negatives, then the extra corpus.
        document_ids: their content hashes.
        query_of_row: position of each row's query (R).
        positives: (query, document) pairs that are known to be right, in ascending order of queries.
        own: (row, document) pairs: the positives of each row, in ascending order of rows.
        given: (row, document) pairs: negatives that the rows bring, in ascending order of rows.
        excluded: pairs that are never candidates: positives of the query's text under any instruction,
            documents that equal the query, and documents of the query's clusters.
    """

    queries: pa.Array
    instructions: pa.Array
    documents: pa.Array
    document_ids: pa.Array
    query_of_row: np.ndarray
    positives: tuple[np.ndarray, np.ndarray]
    own: tuple[np.ndarray, np.ndarray]
    given: tuple[np.ndarray, np.ndarray]
    excluded: Excluded

    def of_queries(self, chosen: np.ndarray) -> "Collection":
        """What is searched for some of the queries, in ascending order; it has no rows."""
        known, none = np.isin(self.positives[0], chosen), np.empty(0, dtype=np.int64)
        return Collection(
            self.queries.take(pa.array(chosen)),
            self.instructions.take(pa.array(chosen)),
            self.documents,
            self.document_ids,
            none,
            (np.searchsorted(chosen, self.positives[0][known]), self.positives[1][known]),
            (none, none),
            (none, none),
            self.excluded.of_queries(chosen),
        )


def read_pairs(data: DataConfig, name: str) -> pa.Table:
    """Training rows of a source in the pair layout.

    Raises:
        DataError: the source cannot be read.
    """
    build_any(name, data)
    return read_split(resolve(data.directory), name, "train")


def source_mistakes(data: DataConfig, entry: SourceMining) -> Iterator[str]:
    """Why an entry of a recipe cannot be mined, as far as that shows without reading rows."""
    try:
        declared = data.sources.get(entry.source) or built_in_source(entry.source)
        if declared.kind != "pairs":
            yield f"source {entry.source} has {declared.kind}; negatives are mined for pairs only"
    except DataError as error:
        yield str(error)
    if entry.known_positives is not None and not fetch(resolve(entry.known_positives)).is_file():
        path = resolve(entry.known_positives)
        yield f"source {entry.source}: there is no known_positives at {path}; give a file"
    try:
        if entry.corpus is not None:
            list_files(entry.corpus)
    except DataError as error:
        yield f"source {entry.source}, corpus: {error}"


def read_corpus(path: str, column: str = "text") -> pa.Array:
    """Texts of a column of a file, or of all files of a folder, of any format that training reads.

    Rows that cannot be read, or have no text there, are counted in the log and left out.

    Raises:
        DataError: nothing is there, or no row has a text there.
    """
    names: dict[str, None] = {}
    left_out = 0

    def texts() -> Iterator[str]:
        nonlocal left_out
        for part in find_parts(UserSourceConfig(path=path), Path()):
            for row in read_part(part):
                record = row.record if isinstance(row.record, dict) else {}
                names.update(dict.fromkeys(record))
                text = record.get(column)
                if isinstance(text, str) and text.strip():
                    yield text
                elif row.record is not None:
                    left_out += 1

    waiting = texts()
    chunks = iter(lambda: list(islice(waiting, _TEXTS_PER_CHUNK)), [])  # not all as Python's texts at once
    found = pa.concat_arrays([pa.array(chunk, pa.large_string()) for chunk in chunks] or [_NO_TEXTS])
    if not len(found):
        raise DataError(f"{path} has no text in a column `{column}`; its columns are {', '.join(names)}")
    if left_out:
        logger.warning("%s: %d rows without a text in `%s` are left out", path, left_out, column)
    return found


def collect(table: pa.Table, extra_documents: pa.Array | None = None) -> Collection:
    """Find the distinct texts of a pair table and what each query may not get as a candidate.

    Three rows, of which the first two ask the same and the last two share a cluster:

        row  query  positives  cluster        query_of_row = [0, 0, 1]: queries are a, b
        0    a      [x]        -              documents = [x, y, z]
        1    a      [y]        c              positives = pairs (0, x), (0, y), (1, z)
        2    b      [z]        c              excluded adds (0, z) and (1, y), which cluster c joins

    Args:
        table: rows in the pair layout.
        extra_documents: further documents to search.
    """
    text_of_row, _ = _codes(_flat(table["query_id"]))
    own_instructions = _flat(table["instruction"]).fill_null("")
    instruction_of_row, _ = _codes(own_instructions)
    query_of_row, first_rows = _codes(pa.array(text_of_row * table.num_rows + instruction_of_row))
    first_row = pa.array(first_rows)
    row_of_positive, positive_texts, positive_ids = _documents(table, "positives")
    row_of_negative, negative_texts, negative_ids = _documents(table, "negatives")
    extra = extra_documents if extra_documents is not None else _NO_TEXTS
    extra = extra.cast(pa.large_string())
    extra_ids = pa.array((document_id(text.as_py()) for text in extra), pa.large_string())
    document_of_text, first_texts = _codes(pa.concat_arrays([positive_ids, negative_ids, extra_ids]))
    first = pa.array(first_texts)
    documents = pa.concat_arrays([positive_texts, negative_texts, extra]).take(first)
    document_ids = pa.concat_arrays([positive_ids, negative_ids, extra_ids]).take(first)
    document_of_positive = document_of_text[: len(positive_ids)]
    document_of_negative = document_of_text[len(positive_ids) : len(positive_ids) + len(negative_ids)]
    positives = _distinct(query_of_row[row_of_positive], document_of_positive)
    same_text = _same_group(
        _distinct(text_of_row, query_of_row), _distinct(text_of_row[row_of_positive], document_of_positive)
    )
    equal = _equal_texts(_flat(table["query_id"]).take(first_row), document_ids)
    pairs = _distinct(*(np.concatenate(side) for side in zip(equal, same_text, strict=True)))
    clusters = _flat(table["cluster"]).dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    some, with_cluster = clusters >= 0, clusters[row_of_positive] >= 0
    asked = _distinct(clusters[some], query_of_row[some])
    held = _distinct(document_of_positive[with_cluster], clusters[row_of_positive][with_cluster])
    logger.info(
        "%d rows: %d queries, %d documents, %d clusters",
        table.num_rows, len(first_row), len(documents), len(np.unique(asked[0])),
    )  # fmt: skip
    return Collection(
        _flat(table["query"]).take(first_row),
        own_instructions.take(first_row),
        documents,
        document_ids,
        query_of_row,
        positives,
        (row_of_positive, document_of_positive.astype(np.int64)),
        (row_of_negative, document_of_negative.astype(np.int64)),
        Excluded.of(*pairs, asked, held),
    )


def _documents(table: pa.Table, column: str) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Row, text and content hash of every document of a list column."""
    lists = _flat(table[column])
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    before = _counts(table, "positives") if column == "negatives" else np.zeros_like(counts)
    identifiers = _flat(table["document_ids"])
    starts = identifiers.offsets.to_numpy()[:-1] - identifiers.offsets[0].as_py() + before
    rows = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = pc.list_flatten(identifiers).take(pa.array(starts[rows] + within))
    return rows, pc.list_flatten(lists), ids


def _counts(table: pa.Table, column: str) -> np.ndarray:
    return pc.list_value_length(_flat(table[column])).to_numpy(zero_copy_only=False)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column, with offsets of 64 bits: texts of a corpus take more than 2 GiB."""
    kind = column.type
    if pa.types.is_string(kind):
        kind = pa.large_string()
    elif pa.types.is_list(kind):
        kind = pa.large_list(pa.large_string())
    combined = column.cast(kind).combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _codes(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Number of each value in order of first appearance, and where each number appears first."""
    codes = values.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, np.unique(codes, return_index=True)[1]


def _distinct(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs in ascending order."""
    pairs = np.unique(np.stack([first, second], axis=1).astype(np.int64), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _equal_texts(query_ids: pa.Array, document_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and the document that equals it word for word."""
    found = pc.index_in(query_ids, document_ids)
    queries = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    return queries, found.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)


def _same_group(
    queries: tuple[np.ndarray, np.ndarray], documents: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of query and document that share a group; both arguments are (group, member), ascending."""
    starts, stops = (np.searchsorted(documents[0], queries[0], side) for side in ("left", "right"))
    counts = stops - starts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(queries[1], counts), documents[1][np.repeat(starts, counts) + within]

"""Rows of a source completed with the negatives that were chosen for them."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice

import numpy as np
import pyarrow as pa

from rayembed.mining.audit import Audit
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection
from rayembed.mining.config import SourceMining
from rayembed.mining.report import RowOutcome
from rayembed.mining.selection import choose
from rayembed.records.schema import to_table


def complete_rows(
    table: pa.Table,
    collection: Collection,
    found: Iterator[tuple[Candidates, ...]],
    settings: SourceMining,
    *,
    seed: int,
    outcomes: list[RowOutcome],
    right: Mapping[int, Set[int]] | None = None,
    audit: Audit | None = None,
    chunk: int = 8192,
) -> Iterator[pa.Table]:
    """Yield the rows with negatives filled in, in tables of the rows of `chunk` queries.

    Rows come in the order of their queries' first appearance. Negatives that a row has already stay.

    Args:
        table: rows in the pair layout.
        collection: made from `table`.
        found: candidates of each query in order, one item a teacher.
        settings: filters, sampling and fill.
        seed: decides what is sampled and filled.
        outcomes: gets one item a row.
        right: query -> documents that a second look found to be right.
        audit: gets every query's candidates and choice.
        chunk: queries of a table.

    Raises:
        DataError: a row must be completed at random and the collection is too small.
    """
    order = np.argsort(collection.query_of_row, kind="stable")
    bounds = np.searchsorted(collection.query_of_row[order], np.arange(len(collection.queries) + 1))
    excluded = grouped(collection.excluded.queries, collection.excluded.documents, len(collection.queries))
    given_by_row = grouped(*collection.given, table.num_rows)
    generator = np.random.default_rng(seed)
    for start in range(0, len(collection.queries), chunk):
        stop = min(start + chunk, len(collection.queries))
        chosen: list[list[int]] = []
        for query in range(start, stop):
            candidates = next(found)
            for row in order[bounds[query] : bounds[query + 1]].tolist():
                given = given_by_row[row].tolist()[: settings.negatives_per_query]
                choice = choose(
                    candidates,
                    settings,
                    wanted=settings.negatives_per_query - len(given),
                    taken={*given, *excluded[query].tolist(), *(right or {}).get(query, ())},
                    size=len(collection.documents),
                    generator=generator,
                )
                short = len(given) + len(choice.mined) < settings.negatives_per_query
                outcomes.append(
                    RowOutcome(choice.candidates, choice.rejected, choice.ranks, len(choice.fills), short)
                )
                if audit is not None:
                    audit.add(query, candidates, choice)
                chosen.append([*given, *choice.mined, *choice.fills])
        yield _with_negatives(table.take(order[bounds[start] : bounds[stop]]), collection, chosen)


def _with_negatives(rows: pa.Table, collection: Collection, chosen: Sequence[Sequence[int]]) -> pa.Table:
    """Rows whose negatives are the chosen documents of the collection."""
    documents = pa.array([document for row in chosen for document in row], pa.int64())
    texts = iter(collection.documents.take(documents).to_pylist())
    ids = iter(collection.document_ids.take(documents).to_pylist())
    completed = []
    for row, negatives in zip(rows.to_pylist(), chosen, strict=True):
        positive_ids = row["document_ids"][: len(row["positives"])]
        document_ids = [*positive_ids, *islice(ids, len(negatives))]
        completed.append(
            row
            | {
                "negatives": list(islice(texts, len(negatives))),
                "document_ids": document_ids,
                # Scores belong to documents; nobody has scored those that are new.
                "teacher_scores": row["teacher_scores"] if document_ids == row["document_ids"] else None,
            }
        )
    return to_table(completed, "pairs")


def grouped(keys: np.ndarray, values: np.ndarray, count: int) -> Sequence[np.ndarray]:
    """Values of each key from 0 to `count`."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, count)))

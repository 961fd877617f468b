"""Mining by BM25 while a stage is prepared: in memory, nothing kept but the rows."""

from collections.abc import Iterator

import pyarrow as pa

from rayembed.mining.bm25 import BM25Search, best_documents
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection, collect
from rayembed.mining.config import FilterConfig, SourceMining
from rayembed.mining.report import MiningReport, RowOutcome
from rayembed.mining.rows import complete_rows, grouped


def mine_bm25(
    table: pa.Table,
    *,
    negatives_per_query: int,
    top_k: int = 30,
    positive_share: float = 0.95,
    seed: int,
) -> tuple[pa.Table, MiningReport]:
    """Complete every row of a pair table to `negatives_per_query` negatives and report what was found.

    The corpus is the documents of all rows. The `top_k` best documents for a query, its own positives not
    counted, are its candidates. Those that score `positive_share` of its best positive or more are rejected;
    the best of the others become negatives. Rows that are still short get random documents that were no
    candidates. Negatives a row already has are kept.

    Raises DataError when the corpus has no words or is too small to complete a row.
    """
    settings = SourceMining(
        source="in-memory",
        top_k=top_k,
        negatives_per_query=negatives_per_query,
        filters=(FilterConfig(name="percentage", value=positive_share),),
    )
    collection = collect(table)
    outcomes: list[RowOutcome] = []
    mined = list(
        complete_rows(
            table, collection, _candidates(collection, top_k), settings, seed=seed, outcomes=outcomes
        )
    )
    return pa.concat_tables(mined), MiningReport.of(outcomes, documents=len(collection.documents))


def _candidates(collection: Collection, top_k: int) -> Iterator[tuple[Candidates]]:
    search = BM25Search(collection.documents.to_pylist())
    positives = grouped(*collection.positives, len(collection.queries))
    excluded = grouped(collection.excluded.queries, collection.excluded.documents, len(collection.queries))
    for query, scores in enumerate(search.scores(collection.queries.to_pylist())):
        best = best_documents(scores, top_k, set(excluded[query].tolist()))
        yield (Candidates(best, scores[best], positives[query], scores[positives[query]]),)

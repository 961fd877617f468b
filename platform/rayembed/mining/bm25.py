"""Hard negatives by BM25: documents of the same source that share words with the query."""

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set

import bm25s
import numpy as np
import pyarrow as pa

from rayembed.data.schema import document_id, to_table
from rayembed.errors import DataError
from rayembed.mining.filters import below_positive_share
from rayembed.mining.report import MiningReport, RowOutcome

# Letters and digits only, so that the parts of an identifier such as `read_file` are words.
TOKEN_PATTERN = r"[^\W_]+"


def mine_bm25(
    table: pa.Table,
    *,
    negatives_per_query: int,
    top_k: int = 30,
    positive_share: float = 0.95,
    seed: int,
) -> tuple[pa.Table, MiningReport]:
    """Complete every row of a pair table to `negatives_per_query` negatives and report what was found.

    The corpus is the positives of all rows. The `top_k` best documents for a query, its own positives not
    counted, are its candidates. Those that score `positive_share` of its best positive or more are rejected;
    the best of the others become negatives. Rows that are still short get random documents that were no
    candidates. Negatives a row already has are kept.

    Raises DataError when the corpus has no words or is too small to complete a row.
    """
    rows = table.to_pylist()
    corpus = {document_id(text): text for row in rows for text in row["positives"]}
    position_of = {identifier: position for position, identifier in enumerate(corpus)}
    texts = list(corpus.values())
    positives_of = _positives_by_query(rows, position_of)
    search = BM25Search(texts)
    generator = np.random.default_rng(seed)

    mined: list[dict] = []
    outcomes: list[RowOutcome] = []
    for row, scores in zip(rows, search.scores([row["query"] for row in rows]), strict=True):
        positives = positives_of[row["query_id"]]
        given = row["negatives"][:negatives_per_query]
        # A document that equals the query, word for word, is no negative of it.
        others = {document_id(text) for text in [row["query"], *given]}
        excluded = positives | {position_of[identifier] for identifier in others & corpus.keys()}

        candidates = best_documents(scores, top_k, excluded)
        keep = below_positive_share(scores[candidates], scores[list(positives)].max(), positive_share)
        ranks = np.flatnonzero(keep)[: negatives_per_query - len(given)]
        fills = random_documents(
            len(texts),
            negatives_per_query - len(given) - len(ranks),
            excluded.union(candidates.tolist()),
            generator,
        )
        outcomes.append(RowOutcome(len(candidates), int((~keep).sum()), (ranks + 1).tolist(), len(fills)))

        negatives = [*given, *(texts[position] for position in [*candidates[ranks], *fills])]
        document_ids = [document_id(text) for text in [*row["positives"], *negatives]]
        mined.append(row | {"negatives": negatives, "document_ids": document_ids})
    return to_table(mined, "pairs"), MiningReport.of(outcomes, documents=len(texts))


class BM25Search:
    """A BM25 index over texts."""

    def __init__(self, texts: Sequence[str]):
        self._size = len(texts)
        self._index = bm25s.BM25()
        words = _tokens(texts)
        if not any(words):
            raise DataError(f"none of the {len(texts)} documents has a word that BM25 could search by")
        self._index.index(words, show_progress=False)

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield for each query its scores [documents]; zero where no word is shared."""
        for words in _tokens(queries):
            yield self._index.get_scores(words) if words else np.zeros(self._size, dtype=np.float32)


def best_documents(scores: np.ndarray, count: int, excluded: Set[int]) -> np.ndarray:
    """Positions of the `count` best documents that score above zero and are not excluded, best first."""
    window = min(count + len(excluded), len(scores))
    best = np.argpartition(-scores, window - 1)[:window]
    best = best[np.lexsort((best, -scores[best]))]
    usable = [position not in excluded for position in best.tolist()]
    return best[usable & (scores[best] > 0)][:count]


def random_documents(size: int, count: int, excluded: Set[int], generator: np.random.Generator) -> list[int]:
    """Draw `count` different positions below `size` that are not excluded."""
    if size - len(excluded) < count:
        raise DataError(
            f"a row needs {count} more negatives and the source has {size - len(excluded)} other documents; "
            "lower negatives_per_query or add data"
        )
    picks: list[int] = []
    while len(picks) < count:
        pick = int(generator.integers(size))
        if pick not in excluded and pick not in picks:
            picks.append(pick)
    return picks


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(
        list(texts), stopwords="en", token_pattern=TOKEN_PATTERN, return_ids=False, show_progress=False
    )


def _positives_by_query(rows: list[dict], position_of: dict[str, int]) -> dict[str, set[int]]:
    """Positions of all documents that answer a query, also in other rows with the same query."""
    positives: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        positives[row["query_id"]].update(position_of[document_id(text)] for text in row["positives"])
    return positives

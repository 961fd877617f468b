"""Search by BM25: documents that share words with the query."""

from collections.abc import Iterator, Sequence, Set

import bm25s
import numpy as np

from rayembed.common.errors import DataError

# Letters and digits only, so that the parts of an identifier such as `read_file` are words.
TOKEN_PATTERN = r"[^\W_]+"


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


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(
        list(texts), stopwords="en", token_pattern=TOKEN_PATTERN, return_ids=False, show_progress=False
    )

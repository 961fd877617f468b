"""Search by BM25: documents that share words with the query. Mining and the lexical baseline use this one.

Words are lower-cased and compound identifiers are split, as usual in code search: `readLines_from` gives
read, lines, from. English function words are left out; in code they are keywords such as `for` and `is`.
Nothing is stemmed.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import bm25s
import numpy as np
from bm25s.tokenization import STOPWORDS_EN

from rayembed.common.errors import DataError

K1 = 1.5
B = 0.75
"""The usual values, of mteb and bm25s too."""
REVISION = f"k1-{K1}-b-{B}-identifier-parts-english-stop-words"

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(STOPWORDS_EN)


def identifier_parts(text: str) -> list[str]:
    """Lower-cased words of `text`, with snake_case and camelCase split into their parts."""
    return [word.lower() for word in _WORD.findall(_CASE_CHANGE.sub(" ", text))]


def search_terms(text: str) -> list[str]:
    """What BM25 counts: `identifier_parts` without English function words."""
    return [word for word in identifier_parts(text) if word not in _STOP_WORDS]


class BM25Index:
    """A BM25 index over texts, which are read once.

    Raises:
        DataError: no text has a word.
    """

    def __init__(self, texts: Iterable[str]):
        number: dict[str, int] = {}
        # 4 bytes a word: as Python's texts the words of all documents would take twenty times as much.
        words = [
            array("i", [number.setdefault(word, len(number)) for word in search_terms(text)])
            for text in texts
        ]
        if not number:
            raise DataError(f"none of the {len(words)} documents has a word that BM25 could search by")
        self._index = bm25s.BM25(k1=K1, b=B)
        self._index.index((words, number), show_progress=False)

    def save(self, folder: Path) -> None:
        """Write the index to files that `open` maps."""
        self._index.save(folder, show_progress=False)

    @classmethod
    def open(cls, folder: Path) -> "BM25Index":
        """An index that `save` wrote, memory-mapped: processes of one node share it."""
        opened = cls.__new__(cls)
        opened._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        return opened

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield for each query its scores [documents]; zero where no word is shared."""
        size = self._index.scores["num_docs"]
        for words in map(search_terms, queries):
            yield self._index.get_scores(words) if words else np.zeros(size, dtype=np.float32)


def best_documents(scores: np.ndarray, count: int, excluded: np.ndarray) -> np.ndarray:
    """Positions of the `count` best documents that score above zero and are not excluded, best first."""
    window = min(count + len(excluded), len(scores))
    best = np.argpartition(-scores, window - 1)[:window]
    best = best[np.lexsort((best, -scores[best]))]
    return best[~np.isin(best, excluded) & (scores[best] > 0)][:count]

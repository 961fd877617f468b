"""Texts that are nearly the same: the Jaccard similarity of their word triples, case and punctuation aside.

Source: Broder, "On the resemblance and containment of documents", 1997. MinHash with locality-sensitive
hashing (datasketch) finds the candidates; the similarity itself decides.
"""

import re
from collections.abc import Hashable

from datasketch import MinHash, MinHashLSH

_PERMUTATIONS = 128
_SHINGLE_WORDS = 3
# A character of Chinese, Japanese or Thai is a word: these are written without blanks.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


class NearDuplicates:
    """Texts by key, searched for the one that a text nearly repeats.

    Texts of fewer than three words are left out: that two texts use one word says nothing.

    Args:
        similarity: Jaccard similarity of word triples from which two texts are the same.
    """

    def __init__(self, similarity: float = 0.8):
        self._similarity = similarity
        # A missed duplicate costs more than a candidate too many, which is only compared.
        self._index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
        self._shingles: dict[Hashable, frozenset[bytes]] = {}
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, key: Hashable, text: str) -> None:
        """Remember a text under a key of its own."""
        if parts := shingles(text):
            self._shingles[key] = parts
            self._known |= parts
            self._index.insert(key, _sketch(parts))

    def find(self, text: str) -> Hashable | None:
        """Key of the most similar text that is similar enough, or None."""
        parts = shingles(text)
        # Most texts share too few triples with all others together to resemble one of them.
        if not parts or len(parts & self._known) < self._similarity * len(parts):
            return None
        near = ((self._compare(parts, key), key) for key in self._index.query(_sketch(parts)))
        similarity, key = max(near, key=lambda pair: pair[0], default=(0.0, None))
        return key if similarity >= self._similarity else None

    def _compare(self, parts: frozenset[bytes], key: Hashable) -> float:
        others = self._shingles[key]
        return len(parts & others) / len(parts | others)


def shingles(text: str) -> frozenset[bytes]:
    """Word triples of a text; none of a text with fewer words."""
    words = _WORD.findall(text.lower())
    starts = range(len(words) - _SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in starts)


def _sketch(parts: frozenset[bytes]) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch(list(parts))
    return sketch

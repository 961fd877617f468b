"""Texts that are nearly the same, found by MinHash over word triples.

Source: Broder, "On the resemblance and containment of documents", 1997; the library is datasketch.
"""

import re
from collections.abc import Hashable, Iterator

from datasketch import MinHash, MinHashLSH

_WORD = re.compile(r"\w+")
_WORDS = 3  # of a shingle
_PERMUTATIONS = 128


class NearDuplicates:
    """Texts seen so far, searched by the share of word triples in common.

    Args:
        similarity: Jaccard similarity from which two texts count as the same; found by hashing, so that pairs
            near the bound may fall on either side.
    """

    def __init__(self, similarity: float = 0.8):
        self._similarity = similarity
        self._index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
        self._sketches: dict[Hashable, MinHash] = {}

    def __len__(self) -> int:
        return len(self._sketches)

    def find(self, text: str) -> Hashable | None:
        """Key of the most similar text that is similar enough, or None."""
        sketch = _sketch(text)
        near = ((sketch.jaccard(self._sketches[key]), key) for key in self._index.query(sketch))
        similarity, key = max(near, key=lambda pair: pair[0], default=(0.0, None))
        return key if similarity >= self._similarity else None

    def add(self, key: Hashable, text: str) -> None:
        """Remember a text under a key of its own."""
        self._sketches[key] = _sketch(text)
        self._index.insert(key, self._sketches[key])


def shingles(text: str) -> Iterator[str]:
    """Runs of three lower-cased words; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    for start in range(max(1, len(words) - _WORDS + 1)):
        yield " ".join(words[start : start + _WORDS])


def _sketch(text: str) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles(text)])
    return sketch

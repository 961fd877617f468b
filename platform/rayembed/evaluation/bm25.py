"""The lexical baseline: mteb's own BM25 search model with textbook parameters.

Terms are lower-cased words with compound identifiers split: `readLines_from` gives read, lines, from.
Splitting is usual in code search and makes BM25 stronger there. Nothing is stemmed and there is no stop list;
terms found in at least half of the documents are dropped. It meets the same corpus, queries and scorer as the
models.
"""

import re

from mteb.models.model_implementations.bm25 import BM25Search
from mteb.models.model_meta import ModelMeta

K1 = 1.2
B = 0.75
DROPPED_DOCUMENT_SHARE = 0.5
REVISION = f"k1-{K1}-b-{B}-dropped-{DROPPED_DOCUMENT_SHARE}-identifier-parts"

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")


def terms(text: str) -> list[str]:
    """Lower-cased words of `text`, with snake_case and camelCase split into their parts."""
    return [word.lower() for word in _WORD.findall(_CASE_CHANGE.sub(" ", text))]


class BM25(BM25Search):
    """BM25 as an mteb search model; it scores retrieval tasks only."""

    mteb_model_meta = ModelMeta.create_empty(
        overwrites={"name": "rayembed/bm25", "revision": REVISION, "modalities": ["text"]}
    )

    def __init__(self) -> None:
        super().__init__(tokenizer=terms, freq_threshold=DROPPED_DOCUMENT_SHARE, k1=K1, b=B)

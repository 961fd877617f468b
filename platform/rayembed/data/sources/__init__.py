"""Registry of the built-in sources. A new one is a module here and a line in `_ALL`."""

from rayembed.data.sources import debian, perl, python_docstrings, vader, word_similarity, wordnet
from rayembed.data.sources.base import BuiltInSource

_ALL = (
    python_docstrings.SOURCE,
    *wordnet.SOURCES,
    *vader.SOURCES,
    *word_similarity.SOURCES,
    *debian.SOURCES,
    *perl.SOURCES,
)

SOURCES: dict[str, BuiltInSource] = {source.name: source for source in _ALL}

__all__ = ["SOURCES", "BuiltInSource"]

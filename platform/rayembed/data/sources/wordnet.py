"""WordNet 3.1: words or a usage example -> gloss, and gloss -> lexicographer file.

The synsets are shipped with the package (`wordnet_data/`, made by scripts/make_wordnet_parquet.py) together
with WordNet's licence notice.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from rayembed.data.sources.base import BuiltInSource, LabelExample, PairExample, Reader
from rayembed.records.schema import Kind, document_id

SYNSETS = Path(__file__).parent / "wordnet_data" / "synsets.parquet"

EXAMPLE_MINIMUM_WORDS = 3
EXAMPLES_PER_LEXNAME = 500


def read_glosses(downloads: Path) -> Iterator[PairExample]:
    """Yield a pair for the words of a synset and one for each usage example, all with the gloss as document.

    A single word is too ambiguous to be a query, so the first kind needs two or more. Words that occur in
    their own gloss are left out too: there is nothing to learn from an exact match.
    """
    for synset in _synsets():
        words, gloss = synset["lemmas"], synset["gloss"]
        if len(words) > 1 and not any(word.lower() in gloss.lower() for word in words):
            yield PairExample(synset["synset"], ", ".join(words), gloss)
        for example in synset["examples"]:
            if len(example.split()) >= EXAMPLE_MINIMUM_WORDS:
                yield PairExample(synset["synset"], example, gloss)


def read_lexnames(downloads: Path) -> Iterator[LabelExample]:
    """Yield the gloss of a noun with the topic of its lexicographer file, at most 500 a topic.

    The 25 topics are the noun files but `noun.Tops`, the roots of the others. Which 500 is decided by a hash.
    """
    counts: Counter[str] = Counter()
    for synset in sorted(_synsets(), key=lambda synset: document_id(synset["gloss"])):
        part_of_speech, topic = synset["lexname"].split(".")
        if part_of_speech == "noun" and topic != "Tops" and counts[topic] < EXAMPLES_PER_LEXNAME:
            counts[topic] += 1
            yield LabelExample(synset["synset"], synset["gloss"], topic)


def _synsets() -> list[dict]:
    return pq.read_table(SYNSETS).to_pylist()


def _source(name: str, title: str, kind: Kind, task_type: str, read: Reader) -> BuiltInSource:
    return BuiltInSource(
        name=name,
        title=title,
        kind=kind,
        task_type=task_type,
        origin="WordNet 3.1 database files",
        licence="WordNet",
        terms="Permissive; every copy carries Princeton's notice, here wordnet_data/LICENSE.txt.",
        requires="nothing",
        read=read,
    )


SOURCES = (
    _source(
        "wordnet-glosses",
        "WordNet: words or usage example to gloss",
        kind="pairs",
        task_type="retrieval",
        read=read_glosses,
    ),
    _source(
        "wordnet-lexnames",
        "WordNet: noun gloss to topic, 25 classes",
        kind="labels",
        task_type="clustering",
        read=read_lexnames,
    ),
)

"""Builders of the built-in sources, on the shipped data and on small hand-made archives."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import DataError
from rayembed.data.sources import SOURCES, python_docstrings, vader, word_similarity, wordnet
from rayembed.data.sources.base import SPLITS
from rayembed.data.store import drop_repeats

MODULE = '''
"""Module docstring."""

def outer(values):
    """Return the sum of all values.

    More about it.
    """
    def inner(value):
        """Double one value, nothing more."""
        return value * 2
    return sum(map(inner, values))

def short():
    """Too short a docstring."""
    return 1

def undocumented():
    return 1

def only_documented():
    """This function has nothing but a docstring."""
'''


def test_registry_names():
    assert list(SOURCES) == [
        "python-docstrings",
        "wordnet-glosses",
        "wordnet-lexnames",
        "vader-tweets",
        "vader-amazon",
        "vader-movies",
        "vader-nytimes",
        "wordsim353",
        "simlex999",
        "debian-descriptions",
        "debian-sections",
        "debian-bitext-de",
        "debian-bitext-fr",
        "perlfaq",
        "perldiag",
    ]


def test_docstring_is_the_query_and_is_not_in_the_code(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(MODULE)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:")
    examples = list(python_docstrings.read(tmp_path, library=tmp_path))
    assert [(example.group, example.query) for example in examples] == [
        ("package", "Return the sum of all values."),
        ("package", "Double one value, nothing more."),
    ]
    assert examples[0].positive == (
        "def outer(values):\n\n    def inner(value):\n        return value * 2\n"
        "    return sum(map(inner, values))"
    )


def test_docstrings_of_the_real_library(tmp_path):
    library = Path(json.__file__).parent
    examples = list(python_docstrings.read(tmp_path, library=library))
    assert any(example.query.startswith("Serialize ``obj`` to a JSON formatted") for example in examples)
    assert all(5 <= len(example.query.split()) <= 60 for example in examples)
    assert max(len(example.positive) for example in examples) == python_docstrings.DOCUMENT_CHARACTERS


def test_wordnet_glosses_have_both_kinds_of_query(tmp_path):
    examples = list(wordnet.read_glosses(tmp_path))
    of_dog = {
        example.query for example in examples if example.positive.startswith("a member of the genus Canis")
    }
    assert of_dog == {"dog, domestic dog, Canis familiaris", "the dog barked all night"}
    assert len(examples) > 80_000


def test_wordnet_topics_are_in_every_split_and_capped(tmp_path):
    examples, _ = drop_repeats(wordnet.read_lexnames(tmp_path))
    counts = Counter(example.label for example in examples)
    assert len(counts) == 25
    assert max(counts.values()) <= wordnet.EXAMPLES_PER_LEXNAME
    assert all(
        len({example.label for example in examples if example.split == split}) == 25 for split in SPLITS
    )


def test_wordnet_ships_its_licence_and_stays_small():
    folder = wordnet.SYNSETS.parent
    assert "Princeton University" in (folder / "LICENSE.txt").read_text()
    assert wordnet.SYNSETS.stat().st_size < 6_000_000
    assert pq.read_metadata(wordnet.SYNSETS).num_rows == 117_791


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def sentiment_archive(tmp_path):
    inner = io.BytesIO()
    ratings = "1_1\t-0.9\tmeh\r\n1_2\t-1.0\tbad &amp; ugly\r\n2_1\t3.5\ttr\u00e8s bon\r\n"
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, "hutto/tweets_GroundTruth.txt", ratings.encode())
    with tarfile.open(tmp_path / "package.tar.gz", mode="w:gz") as archive:
        add(archive, "package/resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return tmp_path / "package.tar.gz"


def test_sentiment_is_read_from_the_archive_in_the_archive(sentiment_archive, monkeypatch, tmp_path):
    monkeypatch.setattr(vader, "fetch_package", lambda *_, **__: sentiment_archive)
    examples = list(SOURCES["vader-tweets"].read(tmp_path))
    assert [(example.group, example.text, example.label) for example in examples] == [
        ("1", "bad & ugly", "negative"),
        ("2", "tr\u00e8s bon", "positive"),
    ]


def test_a_missing_member_is_named(sentiment_archive):
    with pytest.raises(DataError, match="no file movies"):
        vader.read_member(sentiment_archive, "movies")


def test_word_scores_are_read_from_the_wheel(monkeypatch, tmp_path):
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "gensim/test/test_data/wordsim353.tsv", "# words\ntiger\tcat\t7.35\n\nold\tnew\t1.58\n"
        )
    monkeypatch.setattr(word_similarity, "fetch_package", lambda *_, **__: wheel)
    examples = list(SOURCES["wordsim353"].read(tmp_path))
    assert [(e.sentence1, e.sentence2, e.score, e.split) for e in examples] == [
        ("tiger", "cat", 7.35, "test"),
        ("old", "new", 1.58, "test"),
    ]
    with pytest.raises(DataError, match=r"no file .*simlex999"):
        list(SOURCES["simlex999"].read(tmp_path))

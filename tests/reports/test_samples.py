from rayembed.records.schema import LABEL_SCHEMA, PAIR_SCHEMA
from rayembed.reports.samples import embedding_map, sample_searches
from tests.evaluation.conftest import WordEngine, labelled, pair, write_split


def test_searches_find_the_function_that_shares_words(tmp_path):
    rows = [pair(f"sort the list number {n}", f"def sort_{n}(): sort list number {n}") for n in range(20)]
    write_split(tmp_path, "python-docstrings", "test", rows, PAIR_SCHEMA)
    searches = sample_searches(WordEngine(), tmp_path, queries=2)
    assert len(searches) == 2
    for search in searches:
        assert [hit.score for hit in search.hits] == sorted((hit.score for hit in search.hits), reverse=True)
        number = search.query.split()[-1]
        assert all(hit.right == (f"sort_{number}()" in hit.text) for hit in search.hits)


def test_the_map_keeps_the_most_frequent_labels(tmp_path):
    sizes = {"noun.animal": 9, "noun.plant": 7, "noun.rare": 1}
    rows = [
        labelled(f"{label} {n}", label, "wordnet-lexnames")
        for label, size in sizes.items()
        for n in range(size)
    ]
    write_split(tmp_path, "wordnet-lexnames", "test", rows, LABEL_SCHEMA)
    shown = embedding_map(WordEngine("0" * 64), WordEngine("1" * 64), tmp_path, labels=2, texts=12)
    assert set(shown.labels) == {"noun.animal", "noun.plant"}
    assert len(shown.labels) == len(shown.untrained) == len(shown.trained) == 12

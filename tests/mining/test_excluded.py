"""Every way of asking what is excluded, against a table of all pairs."""

import numpy as np
import pytest

from rayembed.mining.excluded import Excluded

QUERIES, DOCUMENTS = 9, 14


@pytest.fixture(params=[(0, 0), (20, 0), (0, 20), (20, 20)])
def both(request):
    """Excluded pairs, single ones and of clusters, and the table [queries, documents] that says the same."""
    singles, members = request.param
    draw = np.random.default_rng(3).integers
    single = draw(0, QUERIES, singles), draw(0, DOCUMENTS, singles)
    asked, held = (
        (draw(0, 5, members), draw(0, QUERIES, members)),
        (draw(0, DOCUMENTS, members), draw(0, 7, members)),
    )
    table = np.zeros((QUERIES, DOCUMENTS), dtype=bool)
    table[single] = True
    for cluster, query in zip(*asked, strict=True):
        table[query, held[0][held[1] == cluster]] = True
    return Excluded.of(*single, asked, held), table


def test_pairs_of_chosen_queries_and_documents_are_those_of_a_table(both):
    excluded, table = both
    for chosen in (np.arange(QUERIES), np.arange(2, 6), np.array([0, 3, 8])):
        for start, stop in ((0, DOCUMENTS), (4, 9), (13, 14)):
            found = np.zeros((len(chosen), stop - start), dtype=bool)
            found[excluded.of_queries(chosen).of_documents(start, stop).pairs()] = True
            np.testing.assert_array_equal(found, table[chosen, start:stop])


def test_documents_of_a_query_and_whether_a_pair_is_excluded(both):
    excluded, table = both
    never = excluded.finder()
    for query in range(QUERIES):
        assert never(query).tolist() == np.flatnonzero(table[query]).tolist()
    assert (excluded.counts(QUERIES) >= table.sum(axis=1)).all()
    rows, documents = np.array([7, 0, 4]), np.array([[13, 2, 5, 5], [0, 1, 2, 3], [9, 8, 13, -1]])
    covered = excluded.covers(rows, documents)
    np.testing.assert_array_equal(covered[:2], table[rows[:2, None], documents[:2]])
    np.testing.assert_array_equal(covered[2, :3], table[4, documents[2, :3]])

import numpy as np
import pytest

from rayembed.mining import search
from rayembed.mining.excluded import Excluded
from rayembed.mining.search import exact_top_k


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of queries and of documents, with a ragged last one."""
    monkeypatch.setattr(search, "QUERY_BLOCK", 5)
    monkeypatch.setattr(search, "DOCUMENT_BLOCK", 100)


def brute_force(queries, corpus, count, excluded=()):
    """Every score, sorted stably: of equal scores the earlier document comes first."""
    scores = (queries @ corpus.T).astype(np.float32)
    for query, document in excluded:
        scores[query, document] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(scores, order, axis=1)
    return found, np.where(np.isneginf(found), -1, order)


def integers(generator, rows):
    """Vectors with few values, so that products are exact and many are equal."""
    return generator.integers(-2, 3, size=(rows, 6)).astype(np.float32)


@pytest.mark.parametrize("shard", [17, 64, 330, 1000])
@pytest.mark.parametrize("count", [1, 10, 150])
def test_equals_brute_force_with_ties_over_any_shards(shard, count):
    generator = np.random.default_rng(count)
    queries, corpus = integers(generator, 13), integers(generator, 330)
    shards = [corpus[start : start + shard] for start in range(0, len(corpus), shard)]
    scores, positions = exact_top_k(queries, shards, count)
    expected_scores, expected_positions = brute_force(queries, corpus, count)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(positions, expected_positions)


def test_excluded_pairs_are_no_results_and_take_no_place():
    generator = np.random.default_rng(0)
    queries, corpus = integers(generator, 13), integers(generator, 330)
    _, best = brute_force(queries, corpus, 20)
    pairs = [(query, document) for query in range(13) for document in best[query, ::2].tolist()]
    excluded = Excluded.of(*(np.array(side) for side in zip(*pairs, strict=True)))
    found = exact_top_k(queries, [corpus[:120], corpus[120:]], 20, excluded=excluded)
    for got, expected in zip(found, brute_force(queries, corpus, 20, pairs), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_fewer_documents_than_asked_for_are_marked():
    corpus = np.eye(6, dtype=np.float32)
    scores, positions = exact_top_k(corpus[:2], [corpus[:4], corpus[4:]], 9)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1]
    assert scores[0].tolist() == [1, 0, 0, 0, 0, 0, -np.inf, -np.inf, -np.inf]
    excluded = Excluded.of(np.array([1]), np.array([1]))
    _, positions = exact_top_k(corpus[:2], [corpus], 9, excluded=excluded)
    assert positions[1].tolist() == [0, 2, 3, 4, 5, -1, -1, -1, -1]


def test_random_vectors_agree_with_double_precision():
    generator = np.random.default_rng(1)
    queries, corpus = (generator.normal(size=(rows, 64)).astype(np.float32) for rows in (11, 530))
    scores, positions = exact_top_k(queries, [corpus], 7)
    expected_scores, expected_positions = brute_force(queries.astype(float), corpus.astype(float), 7)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_array_equal(positions, expected_positions)

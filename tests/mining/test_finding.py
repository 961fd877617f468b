"""The search over slices of the documents, against one over all of them at once."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from rayembed.mining import finding, teachers
from rayembed.mining.approximate import Approximation, cluster_count
from rayembed.mining.candidates import SearchJob, measured_recall, read_candidates
from rayembed.mining.excluded import Excluded
from rayembed.mining.finding import MergePart, SearchSlice, find_candidates, write_pairs
from rayembed.mining.teachers import VectorJob, write_texts

TOP, WIDTH = 5, 4
QUERIES, DOCUMENTS = 23, 61
SHARD = 8


@pytest.fixture
def shards_of_eight(monkeypatch):
    monkeypatch.setattr(teachers, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(finding, "SHARD_ROWS", SHARD)


@pytest.fixture
def job(tmp_path, shards_of_eight):
    return vectors_job(tmp_path)


def vectors_job(folder, documents=DOCUMENTS, continuous=False):
    """Vectors of small integers, which make many scores equal, or continuous ones, in shards of eight."""
    generator = np.random.default_rng(1)
    sides = {}
    for side, rows in (("query", QUERIES), ("document", documents)):
        texts = write_texts(pa.array([f"{side} {row}" for row in range(rows)]), folder / f"{side}.parquet")
        sides[side] = VectorJob(texts, folder / side, side, None)
        (folder / side).mkdir()
        vectors = generator.integers(-2, 3, (rows, WIDTH)).astype(np.float32)
        vectors += generator.normal(size=vectors.shape).astype(np.float32) * continuous
        for path, start in zip(sides[side].shards, range(0, rows, SHARD), strict=True):
            np.save(path, vectors[start : start + SHARD])
    queries = np.sort(generator.integers(0, QUERIES, 30))
    pairs = queries, generator.integers(0, documents, 30)
    excluded = generator.integers(0, QUERIES, 90), generator.integers(0, documents, 90)
    asked = generator.integers(0, 4, 12), generator.integers(0, QUERIES, 12)
    held = generator.integers(0, documents, 9), generator.integers(0, 6, 9)
    collection = SimpleNamespace(positives=pairs, excluded=Excluded.of(*excluded, asked, held))
    stored = write_pairs(collection, folder / "pairs.npz")
    texts = sides["query"].texts, sides["document"].texts
    return SearchJob(*texts, sides["query"], sides["document"], stored, TOP, folder)


def plain(job):
    """Documents, scores, positives and their scores of every query, from one table of all scores."""
    scores = np.concatenate(job.queries.open()) @ np.concatenate(job.documents.open()).T
    with np.load(job.pairs) as pairs:
        known = [pairs["positive_documents"][pairs["positive_queries"] == row] for row in range(QUERIES)]
        allowed = scores.copy()
        excluded = Excluded(pairs["queries"], pairs["documents"], tuple(pairs["asked"]), tuple(pairs["held"]))
        allowed[excluded.pairs()] = -np.inf
    order = np.argsort(-allowed, axis=1, kind="stable")[:, :TOP]
    order = [row[np.isfinite(allowed[query, row])] for query, row in enumerate(order)]
    return [
        (row, scores[query, row], known[query], scores[query, known[query]])
        for query, row in enumerate(order)
    ]


@pytest.mark.parametrize("slices", [1, 3, 8])
@pytest.mark.parametrize("together", [1, 2, 9])
def test_slices_and_rounds_find_what_one_table_does(job, monkeypatch, slices, together):
    monkeypatch.setattr(finding, "_ROUND_BYTES", together * SHARD * (4 * WIDTH + 12 * TOP))
    monkeypatch.setattr(finding, "connect", lambda: None)
    monkeypatch.setattr(finding, "pool_resources", lambda *_, **options: (slices, {}))
    read = []

    def run(make_worker, items, **_):
        worker = make_worker()
        for item in items:
            if "slice" in item:
                read.append(item)
            yield worker(item)

    monkeypatch.setattr(finding, "run_items", run)
    find_candidates(job, actors=2, title="search")
    assert len(read) == slices * -(-3 // together)
    for found, expected in zip(read_candidates(job), plain(job), strict=True):
        parts = found.documents, found.scores, found.positives, found.positive_scores
        for ours, theirs in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert [path.suffix for path in job.parts[0].parent.iterdir()] == [".parquet"] * 3


def test_what_was_found_before_a_stop_is_kept(job, monkeypatch):
    def stopping(self, item):
        raise RuntimeError("stopped")

    monkeypatch.setattr(MergePart, "__call__", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        find_candidates(job, actors=0, title="search")
    monkeypatch.undo()
    monkeypatch.setattr(SearchSlice, "__call__", stopping)
    find_candidates(job, actors=0, title="search")
    assert len(list(read_candidates(job))) == QUERIES


@pytest.mark.parametrize(
    ("index", "nprobe", "least", "most"), [("ivf", 1, 0.3, 0.9), ("ivf", 10**6, 1, 1), ("hnsw", None, 0.9, 1)]
)
def test_an_approximate_search_measures_what_it_finds_of_the_exact_one(
    tmp_path, monkeypatch, shards_of_eight, index, nprobe, least, most
):
    exact = vectors_job(tmp_path, documents=600, continuous=True)
    find_candidates(exact, actors=0, title="exact")
    monkeypatch.setattr(finding, "_ROUND_BYTES", 1)  # a round for each part: the index is made once
    monkeypatch.setattr(finding, "_COMPARED", 12)
    job = replace(exact, approximation=Approximation(index, nprobe))
    assert job.parts[0].parent != exact.parts[0].parent
    build = mock.Mock(side_effect=Approximation._build)
    monkeypatch.setattr(Approximation, "_build", lambda *arguments: build(*arguments))
    find_candidates(job, actors=0, title="approximate")
    assert build.call_count == 1
    assert measured_recall(exact) is None
    pairs = list(zip(read_candidates(job), read_candidates(exact), strict=True))
    measured = [row for start in (0, 8, 16) for row in start + np.linspace(0, min(8, QUERIES - start) - 1, 4)]
    hits = [set(pairs[int(row)][0].documents) & set(pairs[int(row)][1].documents) for row in measured]
    assert measured_recall(job) == sum(map(len, hits)) / (len(measured) * TOP)
    assert least <= measured_recall(job) <= most
    for found, expected in pairs:
        np.testing.assert_allclose(found.positive_scores, expected.positive_scores, rtol=1e-6)
        if least == 1:
            np.testing.assert_array_equal(found.documents, expected.documents)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_too_few_documents_for_two_clusters_are_one_which_is_exact():
    assert [cluster_count(documents) for documents in (1, 77, 78, 10_000, 10**6)] == [1, 1, 2, 256, 4000]

"""The search over slices of the documents, against one over all of them at once."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from rayembed.mining import finding, teachers
from rayembed.mining.candidates import SearchJob, read_candidates
from rayembed.mining.finding import MergePart, SearchSlice, find_candidates, write_pairs
from rayembed.mining.search import Excluded
from rayembed.mining.teachers import VectorJob, write_texts

TOP, WIDTH = 5, 4
QUERIES, DOCUMENTS = 23, 61
SHARD = 8


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Vectors of small integers, so that many scores are equal, in shards of eight."""
    monkeypatch.setattr(teachers, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(finding, "SHARD_ROWS", SHARD)
    generator = np.random.default_rng(1)
    sides = {}
    for side, rows in (("query", QUERIES), ("document", DOCUMENTS)):
        texts = write_texts(pa.array([f"{side} {row}" for row in range(rows)]), tmp_path / f"{side}.parquet")
        sides[side] = VectorJob(texts, tmp_path / side, side, None)
        (tmp_path / side).mkdir()
        vectors = generator.integers(-2, 3, (rows, WIDTH)).astype(np.float32)
        for path, start in zip(sides[side].shards, range(0, rows, SHARD), strict=True):
            np.save(path, vectors[start : start + SHARD])
    queries = np.sort(generator.integers(0, QUERIES, 30))
    pairs = queries, generator.integers(0, DOCUMENTS, 30)
    excluded = generator.integers(0, QUERIES, 90), generator.integers(0, DOCUMENTS, 90)
    collection = SimpleNamespace(positives=pairs, excluded=Excluded.of(*excluded))
    stored = write_pairs(collection, tmp_path / "pairs.npz")
    texts = sides["query"].texts, sides["document"].texts
    return SearchJob(*texts, sides["query"], sides["document"], stored, TOP, tmp_path)


def plain(job):
    """Documents, scores, positives and their scores of every query, from one table of all scores."""
    scores = np.concatenate(job.queries.open()) @ np.concatenate(job.documents.open()).T
    with np.load(job.pairs) as pairs:
        known = [pairs["positive_documents"][pairs["positive_queries"] == row] for row in range(QUERIES)]
        allowed = scores.copy()
        allowed[pairs["excluded_queries"], pairs["excluded_documents"]] = -np.inf
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
    monkeypatch.setattr(finding, "pool_resources", lambda *_: (slices, {}))
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

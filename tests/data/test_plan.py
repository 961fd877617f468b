from collections import Counter

import numpy as np
import pytest

from rayembed.data import plan
from rayembed.data.plan import (
    PlannedBatch,
    PlannedSource,
    PlanReader,
    plan_batches,
    stored_fingerprint,
    write_plan,
)
from rayembed.errors import DataError


def source(
    name: str, rows: int, *, weight: float = 1, in_batch: bool = True, documents: int | None = None
) -> PlannedSource:
    """A source whose rows share `documents` targets in turn; all its own without that."""
    base = sum(name.encode()) * 1_000_000
    targets = np.arange(rows) % (documents or rows) + base
    return PlannedSource(name, weight, in_batch, targets.astype(np.uint64))


def lay_down(sources, *, batch_size=8, steps=50, seed=3, batching="blended") -> list[PlannedBatch]:
    return list(plan_batches(sources, batch_size=batch_size, steps=steps, seed=seed, batching=batching))


BLEND = (source("a", 40, weight=0.5), source("b", 30, weight=0.3, in_batch=False), source("c", 9, weight=0.2))


@pytest.mark.parametrize("batching", ["blended", "homogeneous"])
def test_the_plan_is_a_function_of_the_seed(batching):
    first = lay_down(BLEND, batching=batching)
    assert first == lay_down(BLEND, batching=batching)
    assert first != lay_down(BLEND, batching=batching, seed=4)
    assert [batch.step for batch in first] == list(range(50))
    assert {len(batch.rows) for batch in first} == {8}


def test_a_longer_plan_begins_with_the_shorter_one():
    assert lay_down(BLEND, steps=80)[:50] == lay_down(BLEND, steps=50)


@pytest.mark.parametrize(("batching", "slack"), [("blended", 1), ("homogeneous", 8)])
@pytest.mark.parametrize("weights", [(5, 3, 2), (0.9, 0.07, 0.03), (1, 1, 1)])
def test_shares_follow_the_weights(batching, slack, weights):
    """What a source is owed never grows beyond a row, or beyond a batch where a batch has one source."""
    sources = [source(name, 50, weight=weight) for name, weight in zip("abc", weights, strict=True)]
    counts: Counter[int] = Counter()
    for batch in lay_down(sources, steps=300, batching=batching):
        counts.update(index for index, _ in batch.rows)
        due = [weight / sum(weights) * 8 * (batch.step + 1) for weight in weights]
        assert all(abs(counts[index] - due[index]) <= slack + 1e-9 for index in range(3))


def test_a_homogeneous_batch_has_one_source():
    batches = lay_down(BLEND, batching="homogeneous")
    assert all(len({index for index, _ in batch.rows}) == 1 for batch in batches)
    assert {batch.rows[0][0] for batch in batches} == {0, 1, 2}


def test_every_row_comes_once_before_any_comes_again():
    rows = [row for batch in lay_down([source("a", 20)], batch_size=6, steps=10) for _, row in batch.rows]
    for epoch in range(3):
        assert sorted(rows[epoch * 20 : epoch * 20 + 20]) == list(range(20))
    assert rows[:20] != rows[20:40]


def test_no_two_rows_of_a_batch_share_their_document_where_in_batch_negatives_are_on():
    shared = source("a", 60, documents=12)
    batches = lay_down([shared, source("b", 30)], batch_size=16, steps=60)
    for batch in batches:
        targets = [int(shared.target_ids[row]) for index, row in batch.rows if index == 0]
        assert len(set(targets)) == len(targets) == 8
    taken = Counter(row for batch in batches for index, row in batch.rows if index == 0)
    assert set(taken) == set(range(60))  # postponed is not lost
    assert max(taken.values()) - min(taken.values()) <= 2


def test_documents_are_compared_across_sources():
    twins = [source("a", 20), source("a", 20)]
    for batch in lay_down(twins, batch_size=10, steps=40):
        targets = [int(twins[index].target_ids[row]) for index, row in batch.rows]
        assert len(set(targets)) == len(targets)


def test_rows_may_share_their_document_where_in_batch_negatives_are_off():
    [batch] = lay_down([source("a", 16, documents=2, in_batch=False)], batch_size=16, steps=1)
    assert sorted(row for _, row in batch.rows) == list(range(16))


def test_too_few_documents_for_a_batch_are_an_error():
    with pytest.raises(
        DataError, match=r"source a has too few distinct documents for 8 rows .* lower batch_size"
    ):
        lay_down([source("a", 100, documents=7)])
    assert lay_down([source("a", 100, documents=8)])


def test_a_stored_plan_reads_back_from_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "STEPS_PER_FILE", 4)
    batches = lay_down(BLEND, steps=10)
    assert write_plan(tmp_path / "plan", iter(batches), "the fingerprint") == 10
    assert stored_fingerprint(tmp_path / "plan") == "the fingerprint"
    assert len(list((tmp_path / "plan").glob("*.parquet"))) == 3
    reader = PlanReader(tmp_path / "plan")
    for step in (9, 0, 3, 4, 8, 1):
        assert reader.read(step) == batches[step]


def test_a_plan_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "STEPS_PER_FILE", 1)
    impossible = [source("a", 9), source("b", 90, documents=2, weight=0.05)]
    with pytest.raises(DataError):
        write_plan(tmp_path / "plan", plan_batches(impossible, batch_size=60, steps=5, seed=1), "fingerprint")
    assert list(tmp_path.iterdir()) == []
    assert stored_fingerprint(tmp_path / "plan") is None

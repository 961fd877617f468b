"""Properties that every plan has, whatever its blend."""

import itertools
from collections import Counter

import numpy as np
import pytest

from rayembed.common.errors import DataError
from rayembed.data import clashes, plan_store
from rayembed.data.plan import PlannedBatch, PlannedSource, plan_batches
from rayembed.data.plan_store import PlanReader, stored_description, write_plan


def source(
    name: str, rows: int, *, weight: float | None = 1, in_batch: bool = True, keys=None, **limits
) -> PlannedSource:
    """A source whose row i has the keys `keys(i)`; without that nothing is shared."""
    base = sum(name.encode()) * 1_000_000

    def read():
        pairs = [(row, key + base) for row in range(rows) for key in (keys(row) if keys else ())]
        numbers = np.array([row for row, _ in pairs], dtype=np.int64)
        yield numbers, np.array([key for _, key in pairs], dtype=np.uint64)

    return PlannedSource(name, rows, in_batch, weight, keys=read, **limits)


def lay_down(sources, *, batch_size=8, steps=50, seed=3, **options) -> list[PlannedBatch]:
    return list(plan_batches(sources, batch_size=batch_size, steps=steps, seed=seed, **options))


def pairs(batches: list[PlannedBatch]) -> list[list[tuple[int, int]]]:
    return [batch.pairs() for batch in batches]


def keys_of(sources, index: int, row: int) -> set[int]:
    rows, keys = next(sources[index].keys())
    return set(keys[rows == row].tolist())


INTERLEAVED = {"batching": "interleaved", "sub_batch_size": 4}
POLICIES = [{"batching": "blended"}, {"batching": "homogeneous"}, INTERLEAVED]
BLEND = (
    source("a", 40, weight=0.5, keys=lambda row: [row // 2, 1000 + row]),
    source("b", 30, weight=0.3, in_batch=False),
    source("c", 9, weight=0.2),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_plan_is_a_function_of_the_seed(policy):
    first = lay_down(BLEND, **policy)
    assert pairs(first) == pairs(lay_down(BLEND, **policy))
    assert pairs(first) != pairs(lay_down(BLEND, **policy, seed=4))
    assert [batch.step for batch in first] == list(range(50))
    assert {len(batch.rows) for batch in first} == {8}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_longer_plan_begins_with_the_shorter_one(policy):
    assert pairs(lay_down(BLEND, steps=80, **policy)[:50]) == pairs(lay_down(BLEND, steps=50, **policy))


@pytest.mark.parametrize(("policy", "slack"), zip(POLICIES, (1, 8, 4), strict=True))
@pytest.mark.parametrize("weights", [(5, 3, 2), (0.9, 0.07, 0.03), (1, 1, 1)])
def test_shares_follow_the_weights(policy, slack, weights):
    """What a source is owed never grows beyond the rows that are given together."""
    sources = [source(name, 50, weight=weight) for name, weight in zip("abc", weights, strict=True)]
    counts: Counter[int] = Counter()
    for batch in lay_down(sources, steps=300, **policy):
        counts.update(batch.sources.tolist())
        due = [weight / sum(weights) * 8 * (batch.step + 1) for weight in weights]
        assert all(abs(counts[index] - due[index]) <= slack + 1e-9 for index in range(3))


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1, (0.8, 0.2)), (2, (2 / 3, 1 / 3)), (1e6, (0.5, 0.5))]
)
def test_shares_without_weights_follow_the_sizes_by_temperature(temperature, expected):
    sources = [source("a", 400, weight=None), source("b", 100, weight=None)]
    rows = np.concatenate(
        [batch.sources for batch in lay_down(sources, steps=200, size_temperature=temperature)]
    )
    assert [(rows == index).mean() for index in (0, 1)] == pytest.approx(expected, abs=0.002)


def test_sources_of_a_batch():
    homogeneous = lay_down(BLEND, batching="homogeneous")
    assert all(len(set(batch.sources.tolist())) == 1 for batch in homogeneous)
    assert {int(batch.sources[0]) for batch in homogeneous} == {0, 1, 2}
    for batch in lay_down(BLEND, **INTERLEAVED):
        assert all(count % 4 == 0 for count in Counter(batch.sources.tolist()).values())


def test_every_row_comes_once_before_any_comes_again():
    rows = np.concatenate(
        [batch.rows for batch in lay_down([source("a", 20)], batch_size=6, steps=10)]
    ).tolist()
    for epoch in range(3):
        assert sorted(rows[epoch * 20 : epoch * 20 + 20]) == list(range(20))
    assert rows[:20] != rows[20:40]


def test_an_epochs_end_and_the_next_ones_beginning_do_not_repeat_a_row_in_a_batch():
    for batch in lay_down([source("a", 20)], batch_size=12, steps=40):
        assert len(set(batch.rows.tolist())) == 12


def test_a_cap_chooses_the_same_rows_in_every_epoch():
    def used(seed: int) -> set[int]:
        batches = lay_down([source("a", 100, cap=16)], steps=6, seed=seed)
        counts = Counter(row for batch in batches for row in batch.rows.tolist())
        assert set(counts.values()) == {3}
        return set(counts)

    assert len(used(1)) == 16
    assert used(1) != used(2)


def test_a_source_leaves_when_its_epochs_are_over():
    sources = [source("a", 20, epochs=1.5), source("b", 30)]
    batches = lay_down(sources, steps=30)
    counts = Counter(row for batch in batches for index, row in batch.pairs() if index == 0)
    assert sum(counts.values()) == 30
    assert set(counts) == set(range(20))
    assert all((batch.sources == 1).all() for batch in batches[8:])


@pytest.mark.parametrize("policy", POLICIES)
def test_epochs_that_do_not_last_are_an_error_with_the_number_of_steps(policy):
    sources = [source("a", 24, epochs=1), source("b", 16, epochs=1)]
    assert len(lay_down(sources, steps=5, **policy)) == 5
    with pytest.raises(
        DataError, match=r"rows for 5 of 6 steps of 8 rows \(epochs: a 1, b 1\); lower steps to 5"
    ):
        lay_down(sources, steps=6, **policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_share_a_key_never_meet_where_in_batch_negatives_are_on(policy, seed):
    """Texts shared within a source, by chains of rows and across sources; one source without in-batch."""
    sources = [
        source("a", 90, keys=lambda row: [row // 3, 500 + (row + 1) // 3]),
        source("a", 60, keys=lambda row: [row // 2, 500 + row], weight=2),
        source("a", 50, keys=lambda row: [500 + row], in_batch=False),
        source("d", 64, keys=lambda row: [row % 16]),
    ]
    keys = [[keys_of(sources, index, row) for row in range(sources[index].num_rows)] for index in range(4)]
    met = 0
    for batch in lay_down(sources, steps=60, seed=seed, **policy):
        for (one, row), (two, other) in itertools.combinations(batch.pairs(), 2):
            shared = keys[one][row] & keys[two][other]
            met += bool(shared)
            assert not shared or not (sources[one].in_batch_negatives or sources[two].in_batch_negatives)
    assert met == 0 or policy["batching"] == "homogeneous"


def test_rows_that_wait_are_not_lost():
    batches = lay_down(
        [source("a", 60, keys=lambda row: [row % 12]), source("b", 30)], batch_size=16, steps=60
    )
    taken = Counter(row for batch in batches for index, row in batch.pairs() if index == 0)
    assert set(taken) == set(range(60))
    assert max(taken.values()) - min(taken.values()) <= 2


def test_a_large_cluster_does_not_pile_up():
    """Half of the rows are one cluster and only one of them fits a batch; the others keep their turn."""
    lopsided = source("a", 400, keys=lambda row: [0] if row < 200 else [row])
    batches = lay_down([lopsided], batch_size=8, steps=400)
    for batch in batches:
        assert (batch.rows < 200).sum() <= 1
    taken = Counter(row for batch in batches for row in batch.rows.tolist())
    assert min(taken[row] for row in range(200, 400)) > 10
    assert max(taken[row] for row in range(200)) - min(taken[row] for row in range(200)) <= 2


def test_rows_may_meet_where_in_batch_negatives_are_off():
    [batch] = lay_down([source("a", 16, keys=lambda row: [0], in_batch=False)], batch_size=16, steps=1)
    assert sorted(batch.rows.tolist()) == list(range(16))


def test_too_few_documents_for_a_batch_are_an_error():
    with pytest.raises(
        DataError, match=r"source a has too few distinct documents .* 8 rows .* lower batch_size"
    ):
        lay_down([source("a", 100, keys=lambda row: [row % 7])])
    assert lay_down([source("a", 100, keys=lambda row: [row % 8])])


def test_shared_keys_are_the_same_however_many_passes_find_them(monkeypatch):
    generator = np.random.default_rng(0)
    rows, keys = np.repeat(np.arange(300), 3), generator.integers(0, 700, 900).astype(np.uint64)
    [whole] = clashes.find_shared_keys([lambda: iter([(rows, keys)])], [300])
    monkeypatch.setattr(clashes, "KEYS_PER_PASS", 100)
    pieces = [(rows[start : start + 90], keys[start : start + 90]) for start in range(0, 900, 90)]
    [parts] = clashes.find_shared_keys([lambda: iter(pieces)], [300])
    distinct = [set(keys[rows == row].tolist()) for row in range(300)]
    held = Counter(key for row in distinct for key in row)
    for shared in (whole, parts):
        for row in range(300):
            expected = [key for key in distinct[row] if held[key] > 1]
            assert len(shared.of(row)) == len(expected)
        for one, two in itertools.combinations(range(0, 300, 7), 2):
            clash = not set(shared.of(one)).isdisjoint(shared.of(two))
            assert clash == bool(distinct[one] & distinct[two])


def test_a_stored_plan_reads_back_from_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_store, "ROWS_PER_FILE", 4 * 8)
    batches = lay_down(BLEND, steps=10)
    assert write_plan(tmp_path / "plan", iter(batches), {"seed": 3}) == 10
    assert stored_description(tmp_path / "plan") == {"seed": 3}
    assert len(list((tmp_path / "plan").glob("*.parquet"))) == 3
    reader = PlanReader(tmp_path / "plan")
    for step in (9, 0, 3, 4, 8, 1):
        assert reader.read(step).step == step
        assert reader.read(step).pairs() == batches[step].pairs()


def test_a_plan_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_store, "ROWS_PER_FILE", 1)
    ends = plan_batches([source("a", 24, epochs=1)], batch_size=8, steps=5, seed=1)
    with pytest.raises(DataError):
        write_plan(tmp_path / "plan", ends, {})
    assert list(tmp_path.iterdir()) == []
    assert stored_description(tmp_path / "plan") is None


def test_sources_are_told_apart_by_their_place_in_the_blend():
    twins = [source("a", 40), source("a", 40)]
    rows = [[row for index, row in batch.pairs() if index == 0] for batch in lay_down(twins)]
    others = [[row for index, row in batch.pairs() if index == 1] for batch in lay_down(twins)]
    assert rows != others

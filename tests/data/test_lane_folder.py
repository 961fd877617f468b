"""Lanes on disk: any number of ranks reads the same batches, and a killed writer leaves no half file."""

import os
import signal
from dataclasses import replace

import pytest

from rayembed.common.errors import DataError
from rayembed.data.lane_folder import LaneFolder
from rayembed.data.plan_store import PlanReader
from rayembed.data.stream import StreamSpec, local_batches
from tests.training.sources import stage, stream_spec

STEPS, ROWS = 5, 70


@pytest.fixture(scope="module")
def spec(tmp_path_factory, tiny_base) -> StreamSpec:
    """Seventy rows in 64 lanes, two steps a file, the last file with one."""
    spec = stream_spec(
        tmp_path_factory.mktemp("lanes"), tiny_base, stage(batch_size=ROWS, steps=STEPS), rows=90
    )
    return replace(spec, lanes=replace(spec.lanes, steps_of_a_range=2))


@pytest.fixture(scope="module")
def written(spec) -> LaneFolder:
    lanes, cutter, plan = spec.lanes.begin(), spec.cutter(), PlanReader(spec.plan)
    assert (lanes.lanes, lanes.missing()) == (64, [0, 1, 2])
    for number in lanes.missing():
        lanes.write(number, (cutter.cut(plan.read(step)) for step in lanes.steps_in(number)))
    return lanes


def compared(batches) -> tuple[list, list]:
    """What ranks are given, without the order: documents, and what each row compares with each of them."""
    texts = []
    for batch in batches:
        ids = batch.packed.input_ids_T.split(batch.packed.lengths.texts)
        texts.append([tuple(ids[place].tolist()) for place in batch.packed.order_N.tolist()])
    counts = [batch.num_queries for batch in batches]
    documents = [text for own, count in zip(texts, counts, strict=True) for text in own[count:]]
    rows = [
        (int(batch.source_Q[query]), batch.rows[query])
        for batch, count in zip(batches, counts, strict=True)
        for query in range(count)
    ]
    against = []
    for batch, own in zip(batches, texts, strict=True):
        assert batch.query_counts == counts
        assert sum(batch.document_counts) == len(documents)
        for query in range(batch.num_queries):
            allowed = sorted(documents[place] for place in batch.allowed_QK[query].nonzero())
            competing = sorted(rows[place] for place in batch.competing_QB[query].nonzero())
            taught = batch.teacher_QK[query].nan_to_num(-1).tolist() if batch.teacher_QK is not None else []
            scores = sorted(zip(taught, documents, strict=False))
            row = int(batch.source_Q[query]), batch.rows[query]
            against.append((row, own[query], documents[batch.target_Q[query]], allowed, competing, scores))
    return sorted(documents), sorted(against)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
def test_any_number_of_ranks_reads_the_batches_of_one(spec, written, world_size):
    whole = [compared([batch]) for batch in local_batches(spec, start=1, stop=STEPS)]
    ranks = [written.batches(1, STEPS, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [compared(batches) for batches in zip(*ranks, strict=True)] == whole
    rows = {
        batch.num_queries
        for rank in range(world_size)
        for batch in written.batches(0, 1, rank=rank, world_size=world_size)
    }
    assert max(rows) - min(rows) <= ROWS // 64 + 1


def test_more_ranks_than_lanes_are_refused(written):
    with pytest.raises(DataError, match=r"the 64 lanes of .* do not suffice 65 workers"):
        next(written.batches(0, 1, rank=0, world_size=65))


def test_workers_have_equally_many_lanes_and_every_lane_a_row():
    for workers, batch_size, lanes in ((1, 128, 64), (3, 128, 66), (48, 512, 96), (128, 512, 128), (2, 7, 7)):
        assert LaneFolder.of("", "", steps=1, batch_size=batch_size, workers=workers).lanes == lanes


def test_a_layout_stays_what_it_was(written):
    assert replace(written, lanes=96, steps_of_a_range=1).begin() == written


def test_a_killed_writer_leaves_no_half_file(spec, written, tmp_path):
    lanes = replace(spec.lanes, location=str(tmp_path)).begin()
    tables = [spec.cutter().cut(PlanReader(spec.plan).read(0))]
    child = os.fork()
    if not child:
        lanes._store.files = _DiesInTheMiddle(lanes._store.files)
        lanes.write(0, tables)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert 0 in lanes.missing()
    lanes.write(0, tables)
    assert 0 not in lanes.missing()
    [batch] = lanes.batches(0, 1, rank=0, world_size=1)
    assert batch.num_queries == ROWS
    lanes.remove()
    assert not any(tmp_path.iterdir())


class _DiesInTheMiddle:
    def __init__(self, store):
        self._store = store

    def open_output_stream(self, path):
        with self._store.open_output_stream(path) as stream:
            stream.write(b"ARROW1")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_writer_stays_near_the_ranks_and_stops_with_them(spec, tmp_path, monkeypatch):
    lanes = replace(spec.lanes, location=str(tmp_path)).begin()
    waits = []
    lanes.write(0, [])
    monkeypatch.setattr("rayembed.data.lane_folder.RANGES_AHEAD", 4)
    monkeypatch.setattr("time.sleep", lambda _: (waits.append(1), lanes._store.put("reading", b"6")))
    assert lanes.wait_for_turn(4)
    assert not waits
    assert lanes.wait_for_turn(10)
    assert len(waits) == 1
    assert not lanes.wait_for_turn(11)  # range 6, which the ranks need, is gone
    assert not lanes.wait_for_turn(5)
    lanes.end()
    assert not lanes.wait_for_turn(6)


def test_a_resumed_run_begins_at_its_range_and_gets_earlier_ones_when_it_goes_back(spec, tmp_path):
    lanes = replace(spec.lanes, location=str(tmp_path)).begin(step=3)
    assert lanes.missing() == [1, 2]
    tables = [spec.cutter().cut(PlanReader(spec.plan).read(step)) for step in range(STEPS)]
    for number in range(3):
        lanes.write(number, (tables[step] for step in lanes.steps_in(number)))
    lanes.drop_before(3)
    lanes._store.put("reading", b"0")
    assert lanes.missing() == [0]
    [*_] = lanes.batches(4, STEPS, rank=0, world_size=1)
    lanes.drop_before(STEPS)
    assert lanes.missing() == []
    assert [batch.step for batch in lanes.batches(4, STEPS, rank=1, world_size=2)] == [4]


def test_a_failed_writer_is_told_to_the_ranks(spec, tmp_path):
    lanes = replace(spec.lanes, location=str(tmp_path)).begin()
    lanes.fail("row 3 is bad")
    with pytest.raises(DataError, match="row 3 is bad"):
        next(lanes.batches(0, 1, rank=1, world_size=2))

"""The stream against the plan: its order, its slices, resuming it, and its end."""

import hashlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from rayembed.common.errors import DataError
from rayembed.common.ray_cluster import connect
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.plan_store import PlanReader
from rayembed.data.stream import (
    StreamSpec,
    keep_to_one_processor,
    lanes_written,
    local_batches,
    read_ahead,
    stream_batches,
)
from tests.training.sources import stage, stream_spec

STEPS = 21
FIRST = [  # batches: source and row
    [(0, 13), (0, 12), (0, 15), (0, 23), (0, 0), (1, 13), (1, 10)],
    [(0, 17), (0, 3), (0, 22), (0, 8), (1, 11), (1, 2), (1, 20)],
    [(0, 9), (0, 18), (0, 6), (0, 1), (0, 10), (1, 14), (1, 9)],
]
ALL = "75c933051e5f2ce0fa25dc90668aa384a35181da8119a4c408a84b41e1781a1d"


@pytest.fixture(scope="module")
def spec(tmp_path_factory, tiny_base) -> StreamSpec:
    """Seven rows a batch, which two and three workers share unequally; epochs end within batches."""
    folder = tmp_path_factory.mktemp("stream")
    return stream_spec(folder, tiny_base, stage(batch_size=7, steps=STEPS))


def content(batch) -> list:
    """Everything in a batch, comparable."""
    return [
        batch.step,
        batch.packed.input_ids_T.tolist(),
        batch.packed.pooled_P.tolist(),
        batch.packed.text_index_P.tolist(),
        batch.target_Q.tolist(),
        batch.allowed_QK.tolist(),
        batch.competing_QB.tolist(),
        batch.document_counts,
        batch.query_counts,
        batch.source_Q.tolist(),
        batch.rows,
    ]


def unbroken(spec: StreamSpec, rank: int, world_size: int) -> list:
    batches = local_batches(spec, start=0, stop=STEPS, rank=rank, world_size=world_size)
    return [content(batch) for batch in batches]


def test_batches_stay_what_they_were(spec):
    """Another release continues a run with the same rows in the same order, and the same tokens of them."""
    batches = list(local_batches(spec, start=0, stop=STEPS))
    assert [list(zip(batch.source_Q.tolist(), batch.rows, strict=True)) for batch in batches[:3]] == FIRST
    everything = json.dumps([content(batch) for batch in batches])
    assert hashlib.sha256(everything.encode()).hexdigest() == ALL


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_workers_together_get_the_plans_rows_in_its_order(spec, world_size):
    plan = PlanReader(spec.plan)
    parts = [
        list(local_batches(spec, start=0, stop=STEPS, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [len(part) for part in parts] == [STEPS] * world_size
    for step, batches in enumerate(zip(*parts, strict=True)):
        rows: list = [None] * 7
        for rank, batch in enumerate(batches):
            rows[rank::world_size] = zip(batch.source_Q.tolist(), batch.rows, strict=True)
        assert rows == plan.read(step).pairs()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [1, 8, 20, 21])
def test_resuming_at_any_step_gives_the_rest_of_the_unbroken_stream(spec, world_size, start):
    for rank in range(world_size):
        resumed = local_batches(spec, start=start, stop=STEPS, rank=rank, world_size=world_size)
        assert [content(batch) for batch in resumed] == unbroken(spec, rank, world_size)[start:]


def test_another_number_of_workers_continues_the_same_global_batches(spec):
    """Begun by one worker, continued by three, ended by two: every step has the rows of the plan, once."""
    plan = PlanReader(spec.plan)
    for world_size, steps in ((1, (0, 6)), (3, (6, 13)), (2, (13, STEPS))):
        streams = [
            local_batches(spec, start=steps[0], stop=steps[1], rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for step, batches in zip(range(*steps), zip(*streams, strict=True), strict=True):
            rows = [
                pair for batch in batches for pair in zip(batch.source_Q.tolist(), batch.rows, strict=True)
            ]
            assert sorted(rows) == sorted(plan.read(step).pairs())


def test_fixed_prompts_go_before_texts_of_sources_without_an_instruction(spec):
    prompts = {"instruction_template": "{instruction}", "instructions": {"query": "q: ", "document": "p: "}}
    contract = spec.contract.model_copy(update=prompts)
    tokenizer = load_tokenizer(spec.tokenizer)
    blend = tuple(entry.model_copy(update={"instruction": None}) for entry in spec.blend)
    [batch] = local_batches(replace(spec, contract=contract, blend=blend), start=0, stop=1)
    texts = batch.packed.input_ids_T[: batch.packed.num_tokens].split(list(batch.packed.lengths.texts))
    starts = [tokenizer.decode(texts[place])[:3] for place in batch.packed.order_N.tolist()]
    assert starts == ["q: "] * batch.num_queries + ["p: "] * (len(starts) - batch.num_queries)


@pytest.mark.ray
def test_training_reads_what_the_job_writes(spec, tmp_path, monkeypatch):
    """Ranks begin while lanes are written and see the batches of one process; then the lanes are removed.

    They start before the range that was expected, and go back to ranges that were dropped.
    """
    monkeypatch.setattr("rayembed.data.lane_folder.RANGES_AHEAD", 1)
    monkeypatch.setattr("rayembed.data.stream._LOOK_SECONDS", 0.1)
    lanes = replace(spec.lanes, steps_of_a_range=4)
    connect(num_cpus=1)
    try:
        with lanes_written(replace(spec, lanes=lanes), step=12) as written:
            for start, rank, world_size in ((0, 0, 1), (5, 0, 2), (5, 1, 2)):
                batches = stream_batches(written, start=start, stop=STEPS, rank=rank, world_size=world_size)
                assert [content(batch) for batch in batches] == unbroken(spec, rank, world_size)[start:]
            assert list(stream_batches(written, start=STEPS, stop=STEPS, rank=0, world_size=1)) == []
            written.lanes.drop_before(STEPS)
            batches = stream_batches(written, start=7, stop=STEPS, rank=0, world_size=1)
            assert [content(batch) for batch in batches] == unbroken(spec, 0, 1)[7:]
        assert not Path(lanes.location, lanes.name).exists()
        nowhere = replace(spec, lanes=lanes, tokenizer=str(tmp_path / "nowhere"))
        with lanes_written(nowhere) as written, pytest.raises(DataError, match="nowhere"):
            next(stream_batches(written, start=0, stop=STEPS, rank=0, world_size=1))
    finally:
        ray.shutdown()


def test_reading_works_ahead_as_far_as_it_may():
    made, reached = [], threading.Event()

    def numbers():
        for number in itertools.count():
            made.append(number)
            if number == 4:
                reached.set()
            yield number

    stream = read_ahead(numbers(), 4)
    assert next(stream) == 0
    assert reached.wait(10)
    assert [next(stream) for _ in range(2)] == [1, 2]
    stream.close()
    assert len(made) <= 3 + 4 + 1
    assert list(stream) == []


def test_an_error_comes_behind_the_items_before_it():
    def failing():
        yield 1
        raise ValueError("no more")

    stream = read_ahead(failing(), 4)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no more"):
        next(stream)


@pytest.fixture
def two_processors():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_limited_thread_leaves_the_others_their_processors(two_processors):
    with ThreadPoolExecutor(1) as limited, ThreadPoolExecutor(1) as free:
        limited.submit(keep_to_one_processor).result()
        assert limited.submit(torch.get_num_threads).result() == 1
        assert free.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2


def test_what_is_read_ahead_is_made_on_one_processor(two_processors):
    assert list(read_ahead(_threads(), 1)) == [1]
    assert torch.get_num_threads() == 2


def _threads():
    yield torch.get_num_threads()

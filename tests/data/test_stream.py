"""The stream against the plan: its order, its slices, resuming it, and its end."""

import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from rayembed.common.ray_cluster import connect
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.collate import to_training_batch
from rayembed.data.plan_store import PlanReader
from rayembed.data.stream import (
    Prefetched,
    StreamSpec,
    keep_to_one_processor,
    local_batches,
    stream_batches,
)
from rayembed.data.token_cache import cache_tokens
from tests.training.sources import stage, stream_spec, write_source

STEPS = 21


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


@pytest.mark.parametrize("wordings", [(), ("Look for",)])
@pytest.mark.parametrize("instructions", [(None,), ("Of this row", None)])
def test_cached_tokens_are_those_of_the_texts(spec, wordings, instructions, tmp_path):
    """The cache answers every text of the stream: a tokenizer that refuses to work is never asked."""
    blend = tuple(entry.model_copy(update={"paraphrases": wordings}) for entry in spec.blend)
    paths = [Path(shutil.copytree(path.parent, tmp_path / path.stem)) / path.name for path in spec.sources]
    for offset, path in zip((0, 100), paths, strict=True):
        write_source(path, offset=offset, instructions=instructions)
    plain = replace(spec, blend=blend, sources=tuple(paths))
    tokenizer = load_tokenizer(spec.tokenizer)
    caches = [cache_tokens(*pair, spec.contract, tokenizer) for pair in zip(paths, blend, strict=True)]
    again = [cache_tokens(*pair, spec.contract, tokenizer) for pair in zip(paths, blend, strict=True)]
    assert caches == again
    cached = replace(plain, token_caches=tuple(caches))
    expected, plan = unbroken(plain, 0, 1), PlanReader(spec.plan)
    collator = cached.collator(rank=0, world_size=1)
    collator._tokenizer = None
    batches = [to_training_batch(collator.record(plan.read(step))) for step in range(STEPS)]
    assert [content(batch) for batch in batches] == expected


def test_tokens_under_another_contract_are_another_cache(spec, tmp_path):
    rows = tmp_path / "rows.arrow"
    shutil.copy(spec.sources[0], rows)
    tokenizer, entry = load_tokenizer(spec.tokenizer), spec.blend[0]
    folders = [
        cache_tokens(rows, entry, spec.contract, tokenizer),
        cache_tokens(rows, entry, spec.contract.model_copy(update={"max_length": 40}), tokenizer),
        cache_tokens(rows, entry.model_copy(update={"instruction": "Other"}), spec.contract, tokenizer),
        cache_tokens(rows, entry.model_copy(update={"symmetric": True}), spec.contract, tokenizer),
    ]
    assert len(set(folders)) == 4


@pytest.mark.ray
def test_ray_data_delivers_the_same_batches_from_any_step(spec):
    connect(num_cpus=3)
    try:
        for start, rank, world_size in ((0, 0, 1), (5, 0, 2), (5, 1, 2)):
            batches = list(stream_batches(spec, start=start, stop=STEPS, rank=rank, world_size=world_size))
            assert [content(batch) for batch in batches] == unbroken(spec, rank, world_size)[start:]
            assert batches[0].packed.input_ids_T.dtype == torch.int64
        assert list(stream_batches(spec, start=STEPS, stop=STEPS, rank=0, world_size=1)) == []
    finally:
        ray.shutdown()


def test_prefetching_works_ahead_as_far_as_it_may():
    made, reached = [], threading.Event()

    def numbers():
        for number in itertools.count():
            made.append(number)
            if number == 4:
                reached.set()
            yield number

    stream = Prefetched(numbers, 4)
    assert reached.wait(10)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert len(made) <= 3 + 4 + 1
    assert list(stream) == []


def test_an_error_comes_behind_the_items_before_it_and_again():
    def failing():
        yield 1
        raise ValueError("no more")

    stream = Prefetched(failing, 4)
    assert next(stream) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            next(stream)


def test_the_end_is_an_end_however_often_it_is_asked():
    stream = Prefetched(lambda: iter([1]), 4)
    assert list(stream) == [1]
    assert next(stream, None) is None


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


def test_what_is_prefetched_is_made_on_one_processor(two_processors):
    assert list(Prefetched(_threads, 1)) == [1]
    assert torch.get_num_threads() == 2


def _threads():
    yield torch.get_num_threads()

import asyncio
import gc
import itertools
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest

from rayembed.contract import TokenizedTexts
from rayembed.serving.batching import FairQueue, QueuedRequest, TokenBatcher
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.metrics import ReplicaMetrics
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine

BAD = 666


def texts(*lengths, fill=1):
    return TokenizedTexts([[fill] * length for length in lengths], [0] * len(lengths), [False] * len(lengths))


def batcher_of(encode, token_budget):
    return TokenBatcher(encode, token_budget, ReplicaMetrics("fake"), ThreadPoolExecutor(1))


class Model:
    """Returns each text's length as its vector; fails on a bad token; can be held back."""

    def __init__(self):
        self.batches = []

    def encode(self, tokenized, adapter):
        self.batches.append(tokenized.lengths)
        if any(BAD in ids for ids in tokenized.input_ids):
            raise ValueError("bad token")
        return np.array([[float(length)] for length in tokenized.lengths])


def test_batches_keep_the_budget_and_answers_keep_the_order():
    async def scenario():
        model = Model()
        batcher = batcher_of(model.encode, token_budget=10)
        vectors = await asyncio.gather(
            *(batcher.encode(texts(*lengths)) for lengths in ([4, 5, 3], [2], [6, 6]))
        )
        return model.batches, vectors

    batches, vectors = asyncio.run(scenario())
    assert all(sum(lengths) <= 10 for lengths in batches)
    assert sorted(length for lengths in batches for length in lengths) == [2, 3, 4, 5, 6, 6]
    assert [vector[:, 0].tolist() for vector in vectors] == [[4, 5, 3], [2], [6, 6]]


def test_backlog_is_batched_by_length():
    async def scenario():
        model = Model()
        await batcher_of(model.encode, token_budget=12).encode(texts(2, 9, 2, 10, 2, 2, 2, 2))
        return model.batches

    assert asyncio.run(scenario()) == [[2, 2, 2, 2, 2, 2], [9], [10]]


def test_small_requests_do_not_wait_for_a_huge_one():
    """The huge request has 50 batches of work when the small ones arrive; each is in the next batch,
    and the model may have begun two more when the answers are seen."""

    async def scenario():
        model = Model()
        batcher = batcher_of(model.encode, token_budget=4)
        huge = asyncio.create_task(batcher.encode(texts(*[1] * 200)))
        await asyncio.sleep(0)
        await asyncio.gather(*(batcher.encode(texts(1)) for _ in range(3)))
        batches_before_the_small = len(model.batches)
        huge.cancel()
        return batches_before_the_small

    assert asyncio.run(scenario()) <= 5


def test_bulk_work_waits_for_online_work_and_still_advances():
    async def scenario():
        done = []
        batcher = batcher_of(Model().encode, token_budget=1)

        async def work(name, priority):
            await batcher.encode(texts(1), priority)
            done.append(name)

        await asyncio.gather(
            *(work("bulk", "bulk") for _ in range(2)), *(work("online", "online") for _ in range(20))
        )
        return done

    done = asyncio.run(scenario())
    first = done.index("bulk")
    assert first == 7  # the eighth batch
    assert done.index("bulk", first + 1) == 15


def test_text_above_the_budget_is_computed_alone():
    async def scenario():
        model = Model()
        await batcher_of(model.encode, token_budget=10).encode(texts(3, 25, 4))
        return model.batches

    assert asyncio.run(scenario()) == [[3, 4], [25]]


def test_bad_text_fails_only_its_own_request():
    async def scenario():
        batcher = batcher_of(Model().encode, token_budget=100)
        answers = await asyncio.gather(
            batcher.encode(texts(3, 4)),
            batcher.encode(texts(5, fill=BAD)),
            batcher.encode(texts(6)),
            return_exceptions=True,
        )
        later = await batcher.encode(texts(7))
        return answers, later

    (first, bad, third), later = asyncio.run(scenario())
    assert first[:, 0].tolist() == [3, 4]
    assert isinstance(bad, ValueError)
    assert third[:, 0].tolist() == [6]
    assert later[:, 0].tolist() == [7]


def test_a_failed_pass_leaves_memory_before_its_halves_are_tried():
    class Activations:
        pass

    alive = []

    def encode(tokenized, adapter):
        gc.collect()
        alive.append(sum(reference() is not None for reference in passes))
        activations = Activations()
        passes.append(weakref.ref(activations))
        if len(tokenized) > 1:
            raise MemoryError("out of memory")
        return np.ones((1, 1))

    passes = []
    asyncio.run(batcher_of(encode, token_budget=100).encode(texts(3, 4)))
    assert alive == [0, 0, 0]


def test_vector_that_is_not_finite_fails_only_its_own_request():
    def encode(tokenized, adapter):
        return np.array([[np.nan if length == 5 else 1.0] for length in tokenized.lengths])

    async def scenario():
        batcher = batcher_of(encode, token_budget=100)
        return await asyncio.gather(*(batcher.encode(texts(n)) for n in (4, 5, 6)), return_exceptions=True)

    first, bad, third = asyncio.run(scenario())
    assert isinstance(bad, FloatingPointError)
    assert first.shape == third.shape == (1, 1)


def test_abandoned_request_is_not_computed():
    async def scenario():
        model = Model()
        batcher = batcher_of(model.encode, token_budget=5)
        kept = asyncio.create_task(batcher.encode(texts(5)))
        abandoned = asyncio.create_task(batcher.encode(texts(4)))
        await asyncio.sleep(0)
        abandoned.cancel()
        await kept
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        await batcher.encode(texts(3))
        return model.batches

    assert asyncio.run(scenario()) == [[5], [3]]


def test_a_batch_has_one_adapter_and_adapters_take_turns():
    async def scenario():
        batches = []

        def encode(tokenized, adapter):
            batches.append((adapter, len(tokenized)))
            return np.zeros((len(tokenized), 1))

        batcher = batcher_of(encode, token_budget=4)
        huge = batcher.encode(texts(*[1] * 12), adapter="a")
        await asyncio.gather(huge, batcher.encode(texts(1, 1), adapter="b"), batcher.encode(texts(1)))
        return batches

    assert asyncio.run(scenario()) == [("a", 4), ("b", 2), ("", 1), ("a", 4), ("a", 4)]


def test_a_replica_computes_in_the_thread_that_loaded_its_model():
    threads = []

    class Watched(FakeEngine):
        def encode_tokens(self, *arguments, **options):
            threads.append(threading.current_thread())
            return super().encode_tokens(*arguments, **options)

    def load(_):
        threads.append(threading.current_thread())
        return Watched()

    replica = EmbeddingReplica(ServeConfig(checkpoint="unused", model_name="fake"), load)
    asyncio.run(replica.encode(EncodeRequest([Inputs(texts=["x"])])))
    assert len(threads) == 4, "loaded, tried twice and asked"
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


def batches_of(queue):
    while batch := queue.next_batch():
        yield batch


def queued(*lengths, priority="online", client=""):
    future = asyncio.new_event_loop().create_future()
    return QueuedRequest(texts(*lengths), priority, future, client=client)


@pytest.mark.parametrize(
    ("others", "most"),
    [([[16] * 2048], 2), ([[12] * 2048] * 4, 5), ([[16] * 2048] * 4 + [[300] * 100], 6)],
    ids=["one", "four", "four and a long one"],
)
def test_no_text_waits_for_more_batches_than_there_are_requests(others, most):
    queue = FairQueue(4096)
    for lengths in others:
        queue.add(queued(*lengths))
    unlike = queued(400)
    queue.add(unlike)
    turn = next(
        number
        for number, batch in enumerate(batches_of(queue), 1)
        if any(each.request is unlike for each in batch)
    )
    assert turn <= most


# Of each kind of request: the chance of one with every batch, how many texts it has, and how long those are.
MIX = {
    "search": (0.95, (1, 2), (4, 40)),
    "passages": (0.3, (5, 40), (50, 200)),
    "chapters": (0.1, (1, 6), (700, 1200)),
    "archive": (0.02, (200, 400), (10, 300)),
}


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("seed", range(4))
def test_no_client_waits_for_more_batches_than_there_are_clients(seed, with_keys):
    """Mixed requests come with 300 batches, more than those hold, and the rest is computed.

    Where there are keys a client is a kind of request, and has its turn within as many batches as there are
    clients. Else a client is a request, and those that come later do not delay it. Batches that bulk work
    leads, one in eight, do not count.
    """
    random, queue = Random(seed), FairQueue(1000)
    requests: list[QueuedRequest] = []
    computed: Counter[QueuedRequest] = Counter()
    allowed: dict[str, int] = {}  # client that waits -> batches within which it must have its turn
    bulk_waited = 0
    for turn in itertools.count():
        for kind, (chance, texts_, lengths) in MIX.items() if turn < 300 else ():
            if random.random() < chance:
                sizes = [random.randint(*lengths) for _ in range(random.randint(*texts_))]
                client = kind if with_keys else ""
                requests.append(queued(*sizes, client=client))
                queue.add(requests[-1])
        if turn < 300 and turn % 20 == 0:
            requests.append(queued(*[100] * 30, priority="bulk"))
            queue.add(requests[-1])
        waiting = {
            each.client or str(id(each)) for each in requests if each.waiting and each.priority == "online"
        }
        bulk_waits = any(each.waiting for each in requests if each.priority == "bulk")
        for client in waiting - allowed.keys():
            allowed[client] = len(MIX) if with_keys else len(waiting)
        batch = queue.next_batch()
        if not batch:
            break
        computed.update(item.request for item in batch)
        assert sum(item.length for item in batch) <= 1000 or len(batch) == 1
        served = {each.request.client or str(id(each.request)) for each in batch}
        led_by_bulk = batch[0].request.priority == "bulk"
        allowed = {
            client: left - (not led_by_bulk) for client, left in allowed.items() if client not in served
        }
        assert min(allowed.values(), default=1) > 0
        has_bulk = any(item.request.priority == "bulk" for item in batch)
        bulk_waited = bulk_waited + 1 if bulk_waits and not has_bulk else 0
        assert bulk_waited < 8
    assert turn > 400, "it was too much for the model"
    assert computed == {each: len(each.texts) for each in requests}


def test_bulk_fills_what_online_work_leaves():
    queue = FairQueue(1000)
    queue.add(queued(*[10] * 340, priority="bulk"))
    online = queued(400)
    queue.add(online)
    first = queue.next_batch()
    assert first[0].request is online
    assert sum(each.length for each in first) == 1000


def test_bulk_delays_online_work_by_half_a_batch_at_most():
    queue = FairQueue(100)
    queue.add(queued(*[10] * 400, priority="bulk"))
    queue.add(queued(*[20] * 400))
    shares = [
        sum(each.length for each in batch if each.request.priority == "bulk") for batch in batches_of(queue)
    ]
    online = shares[:80]
    assert max(online) == 50
    assert sum(bool(share) for share in online) == 10


def test_clients_take_turns_however_many_requests_they_send():
    queue = FairQueue(100)
    for _ in range(50):
        queue.add(queued(*[10] * 10, client="a"))
    one = queued(*[10] * 20, client="b")
    queue.add(one)
    for _ in range(4):
        assert sum(each.request is one for each in queue.next_batch()) == 5


def test_a_wrong_number_of_vectors_fails_the_request():
    batcher = batcher_of(lambda tokenized, adapter: np.ones((len(tokenized) + 1, 2)), token_budget=10)
    with pytest.raises(ValueError, match="made 2 vectors of 1 texts"):
        asyncio.run(batcher.encode(texts(3)))


def test_newcomers_do_not_keep_a_large_request_waiting():
    """With every batch as much short work comes as a batch holds; the long text has its turn all the same."""
    queue = FairQueue(100)
    long = queued(90, 90, 90)
    queue.add(long)
    turns = []
    for number in range(12):
        for _ in range(20):
            queue.add(queued(5))
        if any(each.request is long for each in queue.next_batch()):
            turns.append(number)
    assert len(turns) == 3
    assert turns[0] == 0

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rayembed.common.threads import keep_to_one_processor
from rayembed.data.stream import Prefetched


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


def test_a_replica_computes_in_the_thread_that_loaded_its_model():
    from rayembed.serving.config import ServeConfig
    from rayembed.serving.messages import EncodeRequest, Inputs
    from rayembed.serving.replica import EmbeddingReplica
    from tests.serving.fakes import FakeEngine

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
    assert len(threads) == 3, "loaded, tried and asked"
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()

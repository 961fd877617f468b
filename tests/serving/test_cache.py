import asyncio

import fakeredis
import numpy as np
import pytest

from rayembed.common.errors import ConfigError
from rayembed.serving import replica as replica_module
from rayembed.serving.cache import REDIS_URL_VARIABLE, CachedVector, MemoryCache, RedisCache, make_cache
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine


def entry(value=1.0, tokens=3, truncated=True):
    return CachedVector(np.full(4, value, dtype=np.float32), tokens, truncated)


@pytest.mark.parametrize(
    "make",
    [lambda: MemoryCache(1000), lambda: RedisCache(fakeredis.FakeAsyncRedis())],
    ids=["memory", "redis"],
)
def test_entries_come_back_whole(make):
    async def scenario():
        cache = make()
        await cache.store({"a": entry()})
        return await cache.find(["b", "a"])

    missing, found = asyncio.run(scenario())
    assert missing is None
    np.testing.assert_array_equal(found.vector, entry().vector)
    assert (found.tokens, found.truncated) == (3, True)


def test_memory_cache_drops_what_was_unused_for_longest():
    async def scenario():
        cache = MemoryCache(2 * len(entry().to_bytes()))
        await cache.store({"a": entry(), "b": entry()})
        await cache.find(["a"])
        await cache.store({"c": entry()})
        return [found is not None for found in await cache.find(["a", "b", "c"])]

    assert asyncio.run(scenario()) == [True, False, True]


def test_redis_that_fails_is_as_if_empty(caplog):
    async def scenario():
        server = fakeredis.FakeServer()
        cache = RedisCache(fakeredis.FakeAsyncRedis(server=server))
        server.connected = False
        await cache.store({"a": entry()})
        return await cache.find(["a"])

    assert asyncio.run(scenario()) == [None]
    assert caplog.text.count("texts are computed anew") == 1


def test_redis_needs_an_address(monkeypatch):
    monkeypatch.delenv(REDIS_URL_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=REDIS_URL_VARIABLE):
        make_cache("redis", 1)


def test_what_auto_stands_for_and_options_tell_vectors_apart(monkeypatch):
    """Hosts with and without bf16 share a Redis, and so do models with other weights."""
    shared = MemoryCache(10_000)
    monkeypatch.setattr(replica_module, "make_cache", lambda kind, max_bytes: shared)
    cached = []
    for precision, options in (
        ("bf16", {}),
        ("fp32", {}),
        ("bf16", {"quantization": "int8"}),
        ("bf16", {"fp32_layers": 1}),
        ("bf16", {}),
    ):
        engine = FakeEngine()
        engine.precision = precision
        config = ServeConfig(checkpoint="unused", model_name="fake", cache="redis", **options)

        async def ask(config=config, engine=engine):
            replica = EmbeddingReplica(config, lambda _: engine)
            answer = await replica.encode(EncodeRequest([Inputs(["one"])]))
            await asyncio.gather(*replica._unfinished)
            return answer.cached

        cached.append(asyncio.run(ask()))
    assert cached == [0, 0, 0, 0, 1]


def test_endpoint_computes_a_text_once_and_answers_the_same(make_client):
    engine = FakeEngine(instructions={"query": "find"})
    client = make_client(engine, cache="memory")

    def embed(**body):
        response = client.post("/v1/embeddings", json={"model": "fake", **body})
        return response.json(), sum(map(len, engine.batches))

    first, before = embed(input=["one", "w " * 20])
    again, after = embed(input=["one", "w " * 20])
    assert again == first
    assert after == before
    assert first["usage"]["truncated"] == 1
    assert embed(input=["one", "three"])[1] == after + 1
    assert embed(input="one", input_type="query")[1] == after + 2  # another instruction, another vector
    assert embed(input="w " * 20, truncate="START")[1] == after + 3
    assert len(embed(input="one", dimensions=4)[0]["data"][0]["embedding"]) == 4
    assert sum(map(len, engine.batches)) == after + 3

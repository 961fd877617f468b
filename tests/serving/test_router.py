"""Which model and replica answer a request, and what a dying replica means for it."""

import asyncio
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError

from rayembed.common.errors import ConfigError
from rayembed.serving import replica as replica_module
from rayembed.serving import router as router_module
from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem, failed, overloaded
from rayembed.serving.messages import DecodeRequest, EncodeRequest, Inputs, TokenizeRequest
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.middleware import RequestRecord
from rayembed.serving.replica import EmbeddingReplica
from rayembed.serving.router import ModelRouter
from tests.serving.fakes import POISON, BreakingEngine, FakeEngine, LocalHandle


class Dying:
    """Loses its first calls as a killed replica does."""

    def __init__(self, replica, deaths):
        self._replica = replica
        self.deaths = deaths

    async def encode(self, request):
        if self.deaths:
            self.deaths -= 1
            raise ActorDiedError()
        return await self._replica.encode(request)


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setattr(router_module, "_FIRST_PAUSE_S", 0)
    monkeypatch.setattr(router_module, "RETRIES", 2)
    config = ServeConfig(checkpoint="unused", model_name="fake")

    def ask(deaths):
        replica = Dying(EmbeddingReplica(config, lambda _: FakeEngine()), deaths)
        router = ModelRouter(config, {"fake": LocalHandle(replica)}, IngressMetrics())
        return asyncio.run(router.encode("fake", EncodeRequest([Inputs(["x"])]), RequestRecord("id")))

    return ask


def test_request_outlives_its_replica(ask):
    assert ask(deaths=2).vectors.shape[0] == 1


def test_request_that_kills_every_replica_is_given_up(ask):
    with pytest.raises(ApiError) as failure:
        ask(deaths=3)
    assert failure.value.problem.status == 503
    assert failure.value.problem.retry_after_s == 1


def test_models_and_aliases_are_told_apart(make_client):
    other = FakeEngine()
    other.digest = "e" * 64
    client = make_client(
        engines={"other": other},
        aliases=["text-embedding-3-small"],
        models=[{"checkpoint": "elsewhere", "model_name": "other"}],
    )
    digests = {}
    for name in ("fake", "text-embedding-3-small", "other"):
        response = client.post("/v1/embeddings", json={"model": name, "input": "x"})
        assert response.json()["model"] == name
        digests[name] = response.headers["X-Rayembed-Model-Digest"]
    assert digests == {"fake": "f" * 64, "text-embedding-3-small": "f" * 64, "other": "e" * 64}
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["fake", "other"]
    assert client.get("/v1/models/text-embedding-3-small").json()["id"] == "fake"
    unknown = client.post("/v1/embeddings", json={"model": "third", "input": "x"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"


def test_adapters_share_the_replica_of_their_model(make_client):
    engine = FakeEngine()
    client = make_client(
        engine,
        cache="memory",
        adapters=[
            {"adapter": "folder/legal", "aliases": ["law"]},
            {"adapter": "folder/second", "model_name": "medical"},
        ],
    )
    answers = {}
    for name in ("fake", "legal", "law", "medical"):
        response = client.post("/v1/embeddings", json={"model": name, "input": "x"})
        digest = response.headers["X-Rayembed-Model-Digest"]
        answers[name] = (digest, tuple(response.json()["data"][0]["embedding"]))
    assert answers["legal"] == answers["law"]
    assert len(set(answers.values())) == 3
    assert engine.adapters[-3:] == ["", "legal", "medical"], "the alias was answered from the cache"
    assert len(engine.adapters) == 4 + 3, "four passes of the start"
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["fake", "legal", "medical"]
    assert [card["digest"] for card in cards] == [answers[name][0] for name in ("fake", "legal", "medical")]
    assert client.post("/v1/embeddings", json={"model": "second", "input": "x"}).status_code == 404


def test_describing_models_starts_none():
    class Never:
        def __getattr__(self, method):
            raise AssertionError(f"{method} would start a replica")

        async def answers(self, method):
            return []

    config = ServeConfig(checkpoint="unused", model_name="idle", min_replicas=0)
    client = TestClient(create_app(config, {"idle": Never()}))
    [card] = client.get("/v1/models").json()["data"]
    assert (card["id"], card["digest"]) == ("idle", "")
    assert client.get("/v1/models/idle").json() == card
    info = client.get("/info").json()
    unknown = ("model_sha", "model_dtype", "max_input_length")
    assert (info["model_id"], *(info[field] for field in unknown)) == ("idle", None, None, None)


class Replicas:
    """Give the answers listed, one each; the first one that a request need not avoid is asked."""

    def __init__(self, *answers):
        self._answers = dict(zip("abc", answers, strict=False))
        self.asked = ""

    async def encode(self, request):
        name = min(self._answers, key=lambda name: (name in request.avoid, name))
        self.asked += name
        return replace(self._answers[name], replica=name)

    decode = tokenize = encode


FULL, FAILED, FINE = overloaded(1), failed(), Problem(418, "answered")


@pytest.mark.parametrize(
    ("answers", "asked", "status"),
    [
        ([FULL, FINE, FINE], "ab", 418),
        ([FULL, FULL, FINE], "abc", 418),
        ([FAILED, FINE, FINE], "ab", 418),
        ([FULL, FAILED, FINE], "abc", 418),
        ([FAILED, FAILED, FINE], "ab", 500),
        ([FINE, FAILED, FAILED], "a", 418),
        ([FULL], "aa", 429),
        ([FAILED], "aa", 500),
    ],
)
@pytest.mark.parametrize("method", ["encode", "tokenize", "decode"])
def test_another_replica_is_asked_where_one_is_full_or_fails(method, answers, asked, status):
    """A request that fails twice is not tried a third time; where one replica runs, there is no other."""
    config = ServeConfig(checkpoint="unused", model_name="fake", max_replicas=3)
    replicas = Replicas(*answers)
    router = ModelRouter(config, {"fake": LocalHandle(replicas)}, IngressMetrics())
    request = {
        "encode": EncodeRequest([Inputs(["x"])]),
        "tokenize": TokenizeRequest(["x"]),
        "decode": DecodeRequest([[1]]),
    }[method]
    with pytest.raises(ApiError) as refused:
        asyncio.run(getattr(router, method)("fake", request, RequestRecord("id")))
    assert (replicas.asked, refused.value.problem.status) == (asked, status)


def test_a_replica_tells_a_broken_model_from_texts_that_break_it():
    config = ServeConfig(checkpoint="unused", model_name="fake")

    async def failures(engine, text):
        replica = EmbeddingReplica(config, lambda _: engine)
        for _ in range(3):
            answer = await replica.encode(EncodeRequest([Inputs([text])]))
            assert (answer.status, answer.replica) == (500, replica.name)
        await replica.check_health()

    asyncio.run(failures(FakeEngine(), POISON))
    with pytest.raises(RuntimeError, match="the device is lost"):
        asyncio.run(failures(BreakingEngine(), "wedge"))


def test_a_replica_that_leaks_is_not_healthy(monkeypatch):
    memory = [10 * 2**30]
    monkeypatch.setattr(replica_module, "resident_memory", lambda: memory[0])

    def replica(**settings):
        memory[0] = 10 * 2**30
        config = ServeConfig(checkpoint="unused", model_name="fake", cache_bytes=2**30, **settings)
        return EmbeddingReplica(config, lambda _: FakeEngine())

    for settings, most in (({}, 25), ({"max_memory_bytes": 12 * 2**30}, 12)):
        leaking = replica(**settings)
        memory[0] = most * 2**30
        asyncio.run(leaking.check_health())
        memory[0] += 2**30
        with pytest.raises(RuntimeError, match=f"grown to {most + 1}.0 of at most {most}.0 GiB"):
            asyncio.run(leaking.check_health())
    with pytest.raises(ConfigError, match="the loaded model takes 10737418240; raise it"):
        replica(max_memory_bytes=1)


def test_queries_take_the_instruction_that_the_settings_name(make_client):
    engine = FakeEngine(instructions={"search": "find", "similar": "match"})
    engine.contract = engine.contract.model_copy(update={"symmetric": ("similar",)})
    client = make_client(engine, query_instruction="search")
    alike = (
        ({"input": "x", "input_type": "query"}, {"input": "x", "instruction": "find"}),
        ({"input": "x", "input_type": "document"}, {"input": "x"}),
    )
    for asked, same in alike:
        one, other = (client.post("/v1/embeddings", json=body).json()["data"] for body in (asked, same))
        assert one == other
    body = {"query": "a", "documents": ["a"], "prompt_name": "similar"}
    [result] = client.post("/v1/rerank", json=body).json()["results"]
    assert result["relevance_score"] == pytest.approx(1), (
        "both sides of a symmetric task have its instruction"
    )

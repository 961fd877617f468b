"""Several models behind one address."""

import pytest

from rayembed.common.errors import ConfigError
from rayembed.serving.config import ServeConfig
from tests.serving.fakes import FakeEngine


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
    assert engine.adapters[1:] == ["", "legal", "medical"], "the alias was answered from the cache"
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["fake", "legal", "medical"]
    assert [card["digest"] for card in cards] == [answers[name][0] for name in ("fake", "legal", "medical")]
    assert client.post("/v1/embeddings", json={"model": "second", "input": "x"}).status_code == 404


def test_an_entry_takes_what_it_leaves_out():
    config = ServeConfig.parse(
        {
            "checkpoint": "a",
            "model_name": "first",
            "token_budget": 64,
            "num_gpus": 0.5,
            "models": [{"checkpoint": "b", "num_gpus": 1}],
        }
    )
    second = config.all_models[1]
    assert (second.served_name, second.token_budget, second.num_gpus) == ("b", 64, 1)


def test_an_entry_needs_a_checkpoint_of_its_own():
    with pytest.raises(ConfigError, match=r"models\.0\.checkpoint is missing"):
        ServeConfig.parse({"checkpoint": "a", "models": [{"model_name": "b"}]})


def test_names_must_differ():
    with pytest.raises(ConfigError, match="two models are called a"):
        ServeConfig.parse({"checkpoint": "a", "adapters": [{"adapter": "elsewhere/a"}]})
    with pytest.raises(ConfigError, match="two models are called b"):
        ServeConfig.parse({"checkpoint": "a", "aliases": "x,b", "models": [{"checkpoint": "b"}]})

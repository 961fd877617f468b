"""The paths of text-embeddings-inference give the vectors of /v1/embeddings."""

import numpy as np
import pytest

from tests.serving.api.clients import post, vectors
from tests.serving.fakes import WIDTH, FakeEngine, WordTokenizer


def test_embed(client):
    answer = post(client, "/embed", inputs=["one", "two"], dimensions=4)
    expected = vectors(client, input=["one", "two"], dimensions=4)
    np.testing.assert_array_equal(np.float32(answer.json()), expected)
    assert np.shape(post(client, "/embed", inputs="one").json()) == (1, WIDTH)


def test_embed_cuts_on_the_left(client):
    left = post(client, "/embed", inputs="w " * 20 + "end", truncation_direction="Left")
    assert left.headers["X-Rayembed-Truncated"] == "1"
    expected = vectors(client, input="w " * 20 + "end", truncate="START")
    np.testing.assert_array_equal(np.float32(left.json()), expected)


def test_similarity(client):
    inputs = {"source_sentence": "one", "sentences": ["one", "two"]}
    same, other = post(client, "/similarity", inputs=inputs).json()
    assert same == pytest.approx(1, abs=1e-6)
    one, two = vectors(client, input=["one", "two"])
    assert other == pytest.approx(float(one @ two), abs=1e-6)


def test_tokenize(client):
    [tokens] = post(client, "/tokenize", inputs="one").json()
    word = WordTokenizer.word_id("one")
    assert tokens == [
        {"id": word, "text": "one", "special": False, "start": 0, "stop": 3},
        {"id": 1, "text": "</s>", "special": True, "start": None, "stop": None},
    ]
    [[only]] = post(client, "/tokenize", inputs=["one"], add_special_tokens=False).json()
    assert only["id"] == word


def test_decode(client):
    assert post(client, "/decode", ids=[[5, 6], [7]]).json() == ["word5", "word7"]
    many = client.post("/decode", json={"ids": [5] * 40_000})
    assert (many.status_code, many.json()["error"]["param"]) == (413, "ids")
    foreign = client.post("/decode", json={"ids": [10**6]})
    assert (foreign.status_code, foreign.json()["error"]["param"]) == (400, "ids")


def test_info(client):
    info = client.get("/info").json()
    assert info["model_id"] == "fake"
    assert info["model_sha"] == FakeEngine.digest
    assert info["max_input_length"] == 8
    assert (info["model_dtype"], info["model_type"]) == ("float32", {"embedding": {"pooling": "last_token"}})

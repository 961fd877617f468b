"""Cohere's and text-embeddings-inference's paths give the vectors of /v1/embeddings."""

import numpy as np
import pytest

from tests.serving.fakes import WIDTH, FakeEngine, WordTokenizer


def vectors(client, **body):
    response = client.post("/v1/embeddings", json={"model": "fake", **body})
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def post(client, path, **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.fixture
def instructed(make_client):
    return make_client(FakeEngine(instructions={"query": "find", "clustering": "group"}))


def test_cohere_embed(instructed):
    body = post(
        instructed,
        "/v2/embed",
        model="fake",
        texts=["one", "two"],
        input_type="search_query",
        embedding_types=["float", "binary"],
        output_dimension=8,
    ).json()
    expected = vectors(instructed, input=["one", "two"], instruction="find", dimensions=8)
    np.testing.assert_allclose(body["embeddings"]["float"], expected, rtol=1e-6)
    assert np.shape(body["embeddings"]["binary"]) == (2, 1)
    assert body["texts"] == ["one", "two"]
    assert body["meta"]["billed_units"]["input_tokens"] == 10
    assert "warnings" not in body["meta"]


@pytest.mark.parametrize(
    ("input_type", "instruction"),
    [("search_document", None), ("clustering", "group"), ("classification", None)],
)
def test_cohere_input_types(instructed, input_type, instruction):
    body = post(instructed, "/v2/embed", model="fake", texts=["one"], input_type=input_type).json()
    expected = vectors(instructed, input="one", instruction=instruction)
    np.testing.assert_array_equal(np.float32(body["embeddings"]["float"]), expected)


def test_cohere_tells_of_cut_inputs(client):
    body = post(client, "/v2/embed", model="fake", texts=["w " * 20, "short"]).json()
    assert body["meta"]["warnings"] == ["1 inputs were cut to the model's maximum length"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank(instructed, path):
    texts = ["one", "find it", "three"]
    body = post(
        instructed,
        path,
        model="fake",
        query="where",
        documents=["one", {"text": "find it"}, "three"],
        top_n=2,
        return_documents=True,
    ).json()
    query = vectors(instructed, input="where", instruction="find")[0]
    scores = vectors(instructed, input=texts) @ query
    order = np.argsort(-scores)[:2].tolist()
    assert [result["index"] for result in body["results"]] == order
    assert [result["document"]["text"] for result in body["results"]] == [texts[index] for index in order]
    np.testing.assert_allclose(
        [result["relevance_score"] for result in body["results"]], scores[order], rtol=1e-5
    )
    assert body["usage"]["total_tokens"] == 5 + 2 + 3 + 2


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
        {"id": word, "text": f"word{word}", "special": False},
        {"id": 1, "text": "</s>", "special": True},
    ]
    [[only]] = post(client, "/tokenize", inputs=["one"], add_special_tokens=False).json()
    assert only["id"] == word


def test_info(client):
    info = client.get("/info").json()
    assert info["model_id"] == "fake"
    assert info["model_sha"] == FakeEngine.digest
    assert info["max_input_length"] == 8

"""Cohere's paths give the vectors of /v1/embeddings."""

import numpy as np
import pytest

from tests.serving.api.clients import post, vectors
from tests.serving.fakes import FakeEngine


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

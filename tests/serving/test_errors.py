"""Every failure has OpenAI's error shape and never repeats the input."""

import json

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from rayembed.serving import router
from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from tests.serving.fakes import POISON, VOCABULARY, FakeEngine

SECRET = "sesame-1234"

BAD_REQUESTS = {
    "empty list": ({"input": []}, 400, "input"),
    "empty string": ({"input": ""}, 400, "input"),
    "empty string in a list": ({"input": [SECRET, ""]}, 400, "input"),
    "empty token list": ({"input": [[]]}, 400, "input"),
    "mixed list": ({"input": [SECRET, 3]}, 400, "input"),
    "number": ({"input": 3}, 400, "input"),
    "missing input": ({}, 400, "input"),
    "null input": ({"input": None}, 400, "input"),
    "fractional token id": ({"input": [1.5]}, 400, "input"),
    "boolean token id": ({"input": [True]}, 400, "input"),
    "negative token id": ({"input": [-1]}, 400, "input"),
    "token id out of vocabulary": ({"input": [1, VOCABULARY]}, 400, "input"),
    "too many inputs": ({"input": ["x"] * 5}, 400, "input"),
    "dimensions above the width": ({"input": SECRET, "dimensions": 17}, 400, "dimensions"),
    "dimensions zero": ({"input": SECRET, "dimensions": 0}, 400, "dimensions"),
    "dimensions as text": ({"input": SECRET, "dimensions": SECRET}, 400, "dimensions"),
    "unknown encoding": ({"input": SECRET, "encoding_format": SECRET}, 400, "encoding_format"),
    "unknown input type": ({"input": SECRET, "input_type": SECRET}, 400, "input_type"),
    "unknown prompt name": ({"input": SECRET, "prompt_name": SECRET}, 400, "prompt_name"),
    "no query instruction": ({"input": SECRET, "input_type": "query"}, 400, "input_type"),
    "instruction without room for text": ({"input": SECRET, "instruction": "w " * 9}, 400, None),
    "text above the maximum length": ({"input": "w " * 9, "truncate": "NONE"}, 400, "input"),
    "unknown truncation": ({"input": SECRET, "truncate": SECRET}, 400, "truncate"),
    "unknown vector format": ({"input": SECRET, "embedding_type": SECRET}, 400, "embedding_type"),
    "no vector format": ({"input": SECRET, "embedding_types": []}, 400, "embedding_types"),
    "normalize as text": ({"input": SECRET, "normalize": SECRET}, 400, "normalize"),
    "unknown field": ({"input": SECRET, "shorten": SECRET}, 400, "shorten"),
    "foreign field with another meaning": ({"input": SECRET, "late_chunking": True}, 400, "late_chunking"),
    "unknown model": ({"input": SECRET, "model": SECRET}, 404, "model"),
    "text that breaks the model": ({"input": f"{POISON} {SECRET}"}, 500, None),
}


@pytest.fixture
def client(make_client):
    return make_client(FakeEngine(instructions={"topics": "sort"}), max_inputs=4, token_inputs="own")


def assert_error(response, status, param=None):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    assert error["param"] == param
    assert SECRET not in response.text
    return error


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request(client, case):
    body, status, param = BAD_REQUESTS[case]
    assert_error(client.post("/v1/embeddings", json={"model": "fake", **body}), status, param)
    assert client.post("/v1/embeddings", json={"model": "fake", "input": "still serving"}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{" + SECRET.encode(),
        b"",
        b"[]",
        b'"sesame-1234"',
        b'{"model": "fake", "input": NaN}',
        b'{"model": "fake", "input": "\\ud800"}',
        b'\xff\xfe{"input": 1}',
        b"[" * 60_000,
        b'{"model": "fake", "input": [' + b"9" * 5000 + b"]}",
    ],
    ids=["broken", "empty", "list", "string", "nan", "lone surrogate", "not utf-8", "deep", "huge integer"],
)
def test_malformed_body(client, body):
    response = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert SECRET not in response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_priority(client):
    response = client.post(
        "/v1/embeddings", json={"model": "fake", "input": "x"}, headers={"X-Rayembed-Priority": SECRET}
    )
    assert_error(response, 400, "X-Rayembed-Priority")


def test_other_interfaces_fail_in_the_same_shape(client):
    assert_error(client.post("/v2/embed", json={"model": SECRET, "texts": ["x"]}), 404, "model")
    for path, field, items, message in (
        ("/v2/embed", "texts", [], "texts: it is empty"),
        ("/v1/rerank", "documents", ["x", ""], "documents[1]: it is empty"),
        ("/rerank", "texts", ["x", "y", ""], "texts[2]: it is empty"),
    ):
        response = client.post(
            path, json={"query": SECRET, field: items} if "rank" in path else {field: items}
        )
        assert assert_error(response, 400, field)["message"] == message
    assert_error(client.post("/v1/rerank", json={"model": "fake", "query": SECRET}), 400, "documents")
    assert_error(client.post("/embed", json={"inputs": ["w " * 9], "truncate": False}), 400, "input")
    assert_error(client.post("/similarity", json={"inputs": SECRET}), 400, "inputs")
    assert_error(client.post("/tokenize", json={"inputs": SECRET, "prompt_name": SECRET}), 400, "prompt_name")


def test_wrong_content_type_is_explained(client):
    response = client.post(
        "/v1/embeddings", content=json.dumps({"input": SECRET}), headers={"Content-Type": "text/plain"}
    )
    assert "application/json" in assert_error(response, 400)["message"]


def test_unknown_prompt_name_lists_the_known_ones(client):
    response = client.post("/v1/embeddings", json={"model": "fake", "input": "x", "prompt_name": "nope"})
    assert "topics" in assert_error(response, 400, "prompt_name")["message"]


def test_unknown_paths_methods_and_models(client):
    assert_error(client.get("/nowhere"), 404)
    assert_error(client.get("/v1/embeddings"), 405)
    assert_error(client.get(f"/v1/models/{SECRET}"), 404, "model")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_above_the_limit(make_client, chunked):
    client = make_client(max_body_bytes=1000)
    body = json.dumps({"model": "fake", "input": SECRET * 1000}).encode()
    content = iter([body[:600], body[600:]]) if chunked else body
    response = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert_error(response, 413)


@pytest.mark.parametrize(
    ("failure", "status"), [(BackPressureError(9, 9), 429), (RayActorError(), 503), (KeyError(SECRET), 500)]
)
def test_replica_out_of_reach(monkeypatch, failure, status):
    from fastapi.testclient import TestClient

    class Broken:
        @property
        def encode(self):
            return self

        async def remote(self, _):
            raise failure

    monkeypatch.setattr(router, "RETRIES", 0)
    config = ServeConfig(checkpoint="unused", model_name="fake")
    client = TestClient(create_app(config, {"fake": Broken()}), raise_server_exceptions=False)
    response = client.post("/v1/embeddings", json={"model": "fake", "input": SECRET})
    assert_error(response, status)
    assert ("Retry-After" in response.headers) == (status != 500)

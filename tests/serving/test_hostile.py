"""Inputs that break other servers: each gets a vector or one clear error, and the next request is served."""

import socket

import numpy as np
import pytest
import requests

from rayembed.serving import body
from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.middleware import DropAbandonedMiddleware
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine, LocalHandle

ANSWERED = {
    "whitespace": " \t\n ",
    "one megabyte": "word " * 200_000,
    "one word of a megabyte": "a" * 1_000_000,
    "nul": "before\x00after",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd\u202c",
    "emoji and joiners": "👩‍👩‍👧‍👦 🇪🇺 é̂̃",
    "private use": "\ue000\uf8ff\U0010ffff",
    "special tokens as text": "</s><s>[CLS]<|endoftext|>",
    "template braces": "{instruction} {0} %s",
}


@pytest.mark.parametrize("text", ANSWERED.values(), ids=ANSWERED.keys())
def test_odd_text_gets_a_vector(client, text):
    response = client.post("/v1/embeddings", json={"model": "fake", "input": [text, "ordinary"]})
    assert response.status_code == 200
    odd, ordinary = (np.array(item["embedding"]) for item in response.json()["data"])
    assert np.linalg.norm(odd) == pytest.approx(1, abs=1e-5)
    alone = client.post("/v1/embeddings", json={"model": "fake", "input": "ordinary"}).json()
    np.testing.assert_array_equal(ordinary, alone["data"][0]["embedding"])


def test_braces_in_an_instruction_are_text(client):
    body = {"model": "fake", "input": "x", "instruction": "{x}"}
    assert client.post("/v1/embeddings", json=body).status_code == 200


@pytest.mark.parametrize("field", ["instruction", "prompt_name"])
def test_half_a_character_is_refused(client, field):
    body = b'{"model": "fake", "input": "x", "%s": "\\ud800"}' % field.encode()
    response = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_ten_thousand_inputs_are_refused_at_once(client):
    response = client.post("/v1/embeddings", json={"model": "fake", "input": ["x"] * 10_000})
    assert response.status_code == 400
    assert "10000 inputs" in response.json()["error"]["message"]


def test_a_body_that_does_not_arrive_is_given_up(serve_app, monkeypatch):
    monkeypatch.setattr(body, "SLOWEST_S", 0.2)
    config = ServeConfig(checkpoint="unused", model_name="fake")
    replica = EmbeddingReplica(config, lambda _: FakeEngine())
    url = serve_app(create_app(config, {"fake": LocalHandle(replica)}))
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
        head = (
            "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Type: application/json"
        )
        connection.sendall(f"{head}\r\n\r\n{{".encode())
        assert b"408" in connection.recv(100)


def test_slow_and_broken_connections_leave_the_endpoint_serving(serve_app):
    """Half a request, a body that never comes, and no HTTP at all, while others are answered."""
    config = ServeConfig(checkpoint="unused", model_name="fake")
    url = serve_app(
        create_app(config, {"fake": LocalHandle(EmbeddingReplica(config, lambda _: FakeEngine()))})
    )
    port = int(url.rsplit(":", 1)[1])
    openings = [
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x16\x03\x01\x02\x00",
    ]
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in openings]
    for connection, opening in zip(connections, openings, strict=True):
        connection.sendall(opening)
    answer = requests.post(f"{url}/v1/embeddings", json={"model": "fake", "input": "x"}, timeout=30)
    assert answer.status_code == 200
    for connection in connections:
        connection.close()
    assert requests.get(f"{url}/health/live", timeout=30).status_code == 200


def test_work_of_a_client_that_leaves_is_dropped(serve_app):
    """Each request takes two batches of a fifth of a second, and its client waits for half of the first."""
    engine = FakeEngine(seconds_per_batch=0.2)
    config = ServeConfig(checkpoint="unused", model_name="fake", token_budget=4)
    app = create_app(config, {"fake": LocalHandle(EmbeddingReplica(config, lambda _: engine))})
    url = serve_app(DropAbandonedMiddleware(app))
    asked = {"model": "fake", "input": ["one", "two words"]}
    for _ in range(4):
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{url}/v1/embeddings", json=asked, timeout=0.1)
    assert requests.post(f"{url}/v1/embeddings", json=asked, timeout=30).status_code == 200
    assert len(engine.batches) <= 2 + 4 + 2  # when loaded, one of each that was given up, the last request
    assert 'status="499"} 4.0' in requests.get(f"{url}/metrics", timeout=30).text

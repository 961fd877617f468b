"""Requests as the clients of other services send them: the right vectors, or a refusal that names the cure.

`source` of a file says whether a client was run or its documentation was read. A request has the body of
/v1/embeddings that means the same (`like`) and the place of the vectors in the answer, or the place of the
ranks of the documents "one" and "two words", or some values of the answer, or the status and what it says.
"""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from rayembed.serving.authentication import Keyring, KeySettings
from tests.serving.conftest import client_of
from tests.serving.fakes import FakeEngine

FILES = sorted(Path(__file__).with_name("recorded").glob("*.json"))


@pytest.fixture(scope="module")
def client():
    engine = FakeEngine(instructions={"query": "find"}, max_length=64)
    return client_of(engine, keyring=Keyring([KeySettings(name="a", key="KEY")]))


def at(answer, place):
    """Values at a dotted place, `*` being every item."""
    if not place:
        return [answer]
    first, _, rest = place.partition(".")
    if first == "*":
        return [value for item in answer for value in at(item, rest)]
    return at(answer[int(first) if isinstance(answer, list) else first], rest)


def vector(value):
    return np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.float32(value)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_recorded_requests(client, file):
    for request in json.loads(file.read_text())["requests"]:
        headers = request.get("headers", {"Authorization": "Bearer KEY"})
        response = client.request(
            request.get("method", "POST"), request["path"], json=request.get("body"), headers=headers
        )
        told = (request, response.text)
        assert response.status_code == request.get("status", 200), told
        if "ignored" in request:
            assert response.headers["X-Rayembed-Ignored"] == request["ignored"], told
        if "says" in request:
            assert request["says"] in response.json()["error"]["message"], told
        for place, value in request.get("answer", {}).items():
            assert at(response.json(), place) == [value], told
        if "like" not in request:
            continue
        expected = vectors(client, **request["like"])
        if "vectors" in request:
            found = [vector(each) for each in at(response.json(), request["vectors"])]
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(told))
        else:
            order = np.argsort(-(vectors(client, input=["one", "two words"]) @ expected[0])).tolist()
            found = at(response.json(), request["ranks"])
            assert found == order[: len(found)], told


def vectors(client, **body):
    answer = client.post("/v1/embeddings", json=body, headers={"Authorization": "Bearer KEY"}).json()
    return np.float32([item["embedding"] for item in answer["data"]])

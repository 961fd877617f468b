"""The real thing: Ray Serve on a loopback port, driven by the official OpenAI client and by raw HTTP."""

import base64
import json
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import requests
from ray import serve

from rayembed.serving.deploy import example_request
from tests.serving.fakes import POISON, WIDTH, WordTokenizer, application, load_fake, load_slow_fake

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def url(serve_url, tmp_path_factory):
    """Base URL of an endpoint at /, with one that is easily overloaded at /slow."""
    batches = str(tmp_path_factory.mktemp("batches"))
    fast = application(load_fake, token_inputs="own", batches=batches)
    serve.run(fast, name="fast", route_prefix="/")
    serve.run(
        application(load_slow_fake, max_queued_tokens=32, token_budget=4), name="slow", route_prefix="/slow"
    )
    yield serve_url
    serve.delete("fast")
    serve.delete("slow")


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def test_openai_client_gets_vectors(client):
    """The client asks for base64 unless told otherwise and decodes it."""
    response = client.embeddings.create(model="fake", input=["one", "two words"])
    assert [len(item.embedding) for item in response.data] == [WIDTH, WIDTH]
    assert response.usage.prompt_tokens == 5
    floats = client.embeddings.create(model="fake", input=["one", "two words"], encoding_format="float")
    base64_vector, float_vector = (np.float32(each.data[1].embedding) for each in (response, floats))
    np.testing.assert_array_equal(base64_vector, float_vector)


def test_openai_client_sends_tokens_dimensions_and_instructions(client):
    ids = [WordTokenizer.word_id("one")]
    text, tokens = (client.embeddings.create(model="fake", input=value) for value in ("one", ids))
    assert text.data[0].embedding == tokens.data[0].embedding
    assert len(client.embeddings.create(model="fake", input="one", dimensions=4).data[0].embedding) == 4
    asked = client.embeddings.create(model="fake", input="one", extra_body={"instruction": "find"})
    assert asked.data[0].embedding != text.data[0].embedding


def test_openai_client_lists_models(client):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"


def test_openai_client_raises_its_own_error_types(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model="fake", input="")
    assert bad.value.param == "input"
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="other", input="one")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError) as broken:
        client.embeddings.create(model="fake", input=POISON)
    assert broken.value.type == "server_error"


def test_openai_client_runs_a_batch(client):
    body = {"model": "fake", "input": "one"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    deadline = time.monotonic() + 60
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    answer = json.loads(client.files.content(batch.output_file_id).text)["response"]["body"]
    expected = client.embeddings.create(**body, encoding_format="float")
    assert answer["data"][0]["embedding"] == expected.data[0].embedding


def test_raw_http(url):
    response = requests.post(
        f"{url}/v1/embeddings", json={"model": "fake", "input": "w " * 20, "encoding_format": "base64"}
    )
    assert response.headers["X-Rayembed-Truncated"] == "1"
    assert len(response.headers["X-Rayembed-Model-Digest"]) == 64
    assert len(base64.b64decode(response.json()["data"][0]["embedding"])) == 4 * WIDTH
    assert requests.get(f"{url}/health/live").status_code == 200
    assert requests.get(f"{url}/health/ready").json()["status"] == "ready"
    assert requests.get(f"{url}/nowhere").json()["error"]["code"] == "not_found"
    broken = requests.post(f"{url}/v1/embeddings", data=b"{", headers={"Content-Type": "application/json"})
    assert broken.json()["error"]["code"] == "invalid_json"


def test_shown_curl_line_works(url):
    answer = subprocess.run(example_request(url, "fake"), shell=True, capture_output=True, text=True)
    assert '"object":"list"' in answer.stdout


def test_overload_gets_only_200_and_429(url):
    """40 requests of 4 tokens at once where 8 fit; afterwards the endpoint serves as before."""

    def request(_):
        body = {"model": "fake", "input": "one two three"}
        return requests.post(f"{url}/slow/v1/embeddings", json=body, timeout=30)

    with ThreadPoolExecutor(40) as pool:
        responses = list(pool.map(request, range(40)))
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 429}, statuses
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"rate_limit_exceeded"}
    assert request(None).status_code == 200

"""Successful requests: shapes, encodings, instructions and what a response reports."""

import base64

import numpy as np
import pytest

from rayembed.contract.ranges import VectorRanges
from rayembed.engine.vector_formats import quantise
from rayembed.serving import tracing
from tests.serving.fakes import WIDTH, FakeEngine, WordTokenizer


def embed(client, **body):
    response = client.post("/v1/embeddings", json={"model": "fake", **body})
    assert response.status_code == 200, response.text
    return response


def vectors(response):
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def test_response_has_openai_shape(client):
    response = embed(client, input=["one", "two words"], user="someone")
    body = response.json()
    assert body["object"] == "list"
    assert body["model"] == "fake"
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "truncated": 0}
    assert response.headers["X-Rayembed-Model-Digest"] == FakeEngine.digest


def test_four_input_shapes_agree(make_client):
    client = make_client(token_inputs="own")
    text = "a small text"
    ids = [WordTokenizer.word_id(word) for word in text.split()]
    expected = vectors(embed(client, input=text))
    for same in ([text], ids, [ids]):
        np.testing.assert_array_equal(vectors(embed(client, input=same)), expected)


def test_order_of_a_batch_is_kept(client):
    texts = ["one two three four", "one", "one two"]
    single = np.concatenate([vectors(embed(client, input=text)) for text in texts])
    np.testing.assert_array_equal(vectors(embed(client, input=texts)), single)


def test_base64_carries_the_same_floats(client):
    expected = vectors(embed(client, input=["one", "two"]))
    items = embed(client, input=["one", "two"], encoding_format="base64").json()["data"]
    decoded = np.stack([np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in items])
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("dimensions", [1, 5, WIDTH])
def test_dimensions_cut_and_renormalise(client, dimensions):
    full = vectors(embed(client, input="some text"))[0]
    cut = vectors(embed(client, input="some text", dimensions=dimensions))[0]
    np.testing.assert_allclose(cut, full[:dimensions] / np.linalg.norm(full[:dimensions]), rtol=1e-6)


def test_truncation_is_reported(client):
    response = embed(client, input=["short", "w " * 20])
    assert response.json()["usage"] == {"prompt_tokens": 10, "total_tokens": 10, "truncated": 1}
    assert response.headers["X-Rayembed-Truncated"] == "1"


def test_max_length_setting_shortens_the_contract(make_client):
    response = embed(make_client(max_length=4), input="w " * 6)
    assert response.json()["usage"]["prompt_tokens"] == 4


def test_instruction_fields(make_client):
    client = make_client(FakeEngine(instructions={"query": "find", "topics": "sort"}))
    plain = vectors(embed(client, input="x"))
    found = vectors(embed(client, input="x", instruction="find"))
    sorted_by_topic = vectors(embed(client, input="x", instruction="sort"))
    assert not np.array_equal(plain, found)

    np.testing.assert_array_equal(vectors(embed(client, input="x", input_type="query")), found)
    np.testing.assert_array_equal(vectors(embed(client, input="x", input_type="passage")), plain)
    np.testing.assert_array_equal(vectors(embed(client, input="x", input_type="document")), plain)
    np.testing.assert_array_equal(vectors(embed(client, input="x", prompt_name="topics")), sorted_by_topic)
    wins = embed(client, input="x", instruction="find", prompt_name="topics", input_type="passage")
    np.testing.assert_array_equal(vectors(wins), found)
    np.testing.assert_array_equal(
        vectors(embed(client, input="x", instruction="", input_type="query")), plain
    )


def test_model_without_instructions_takes_queries_plain(client):
    np.testing.assert_array_equal(
        vectors(embed(client, input="x", input_type="query")), vectors(embed(client, input="x"))
    )


def test_models_and_health(make_client):
    client = make_client(FakeEngine(instructions={"query": "find"}))
    [card] = client.get("/v1/models").json()["data"]
    assert card["id"] == "fake"
    assert card["dimensions"] == WIDTH
    assert card["instructions"] == {"query": "find"}
    assert client.get("/v1/models/fake").json() == card
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_long_inputs_are_cut_at_the_chosen_side(make_client):
    """8 tokens fit: 7 words and the end token."""
    client = make_client(token_inputs="own")
    words = [f"word{number}" for number in range(12)]
    text = " ".join(words)
    ids = [WordTokenizer.word_id(word) for word in words]
    end = vectors(embed(client, input=" ".join(words[:7])))
    start = vectors(embed(client, input=" ".join(words[-7:])))
    np.testing.assert_array_equal(vectors(embed(client, input=text, truncate="END")), end)
    for long in (text, ids):
        response = embed(client, input=[long] if isinstance(long, str) else long, truncate="START")
        np.testing.assert_array_equal(vectors(response), start)
        assert response.json()["usage"]["truncated"] == 1


def test_cut_at_the_start_keeps_the_instruction(client):
    words = [f"word{number}" for number in range(12)]
    cut = vectors(embed(client, input=" ".join(words), instruction="find", truncate="START"))
    kept = vectors(embed(client, input=" ".join(words[-4:]), instruction="find"))
    np.testing.assert_array_equal(cut, kept)


def test_short_inputs_are_the_same_under_every_truncation(client):
    expected = vectors(embed(client, input="short"))
    for truncate in ("NONE", "START", "END"):
        np.testing.assert_array_equal(vectors(embed(client, input="short", truncate=truncate)), expected)


def test_vectors_that_are_cut_and_not_normalised(client):
    full = vectors(embed(client, input="some text"))[0]
    np.testing.assert_array_equal(
        vectors(embed(client, input="some text", dimensions=4, normalize=False))[0], full[:4]
    )


def test_quantised_vectors(client):
    full = vectors(embed(client, input="some text"))
    for kind in ("int8", "uint8", "binary", "ubinary"):
        expected = quantise(full, kind)
        [item] = embed(client, input="some text", embedding_type=kind).json()["data"]
        assert item["embedding"] == expected[0].tolist()
        same = embed(client, input="some text", embedding_type=kind, encoding_format="base64").json()
        assert same["data"] == [item], "OpenAI's clients ask for base64 unasked, and decode it as floats"
    [item] = embed(client, input="some text", embedding_types=["float", "binary"]).json()["data"]
    assert item["embeddings"]["binary"] == quantise(full, "binary")[0].tolist()
    assert item["embedding"] == item["embeddings"]["float"]


@pytest.mark.parametrize("options", [{}, {"dimensions": 12}, {"dimensions": 12, "normalize": False}])
def test_vectors_are_quantised_by_the_ranges_of_the_contract(make_client, options):
    engine = FakeEngine()
    ranges = VectorRanges.of(engine.encode([f"text {number}" for number in range(9)]).vectors)
    engine.contract = engine.contract.model_copy(update={"vector_ranges": ranges})
    client = make_client(engine)
    full = vectors(embed(client, input="some text", **options))
    for kind in ("int8", "ubinary"):
        expected = quantise(full, kind, ranges, fills_bytes=True)[0].tolist()
        [item] = embed(client, input="some text", embedding_type=kind, **options).json()["data"]
        assert item["embedding"] == expected
        assert expected != quantise(full, kind, fills_bytes=True)[0].tolist()
        asked = {
            "model": "fake",
            "texts": ["some text"],
            "embedding_types": [kind],
            "input_type": "search_document",
        }
        if options.get("normalize", True):
            asked |= {"output_dimension": options.get("dimensions")}
            assert client.post("/v2/embed", json=asked).json()["embeddings"][kind] == [expected]


def test_last_byte_of_signs_is_filled_with_zeros(client):
    [item] = embed(client, input="some text", dimensions=3, embedding_type="ubinary").json()["data"]
    full = vectors(embed(client, input="some text"))[0]
    assert item["embedding"] == [int("".join("1" if value > 0 else "0" for value in full[:3]) + "00000", 2)]


def test_request_id_is_repeated_or_made(client):
    assert client.get("/health/live", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert len(client.get("/health/live", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"]) == 32


def test_a_request_needs_no_other_thread_and_its_trace_reaches_the_replica(make_client, monkeypatch):
    client, span, parents = make_client(), tracing.span, []
    for place in ("fastapi.dependencies.utils", "fastapi.routing"):
        monkeypatch.setattr(f"{place}.run_in_threadpool", lambda *_: pytest.fail("another thread"))
    monkeypatch.setattr(
        tracing, "span", lambda name, parent, **more: parents.append(parent) or span(name, parent)
    )
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    assert client.post("/v1/embeddings", json={"input": "a text"}, headers=trace).status_code == 200
    assert parents == [trace]

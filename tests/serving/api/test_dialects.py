"""A dialect is one module and one line of `DIALECTS`."""

import gzip

import numpy as np
import pytest

from rayembed.serving import api
from rayembed.serving.api.dialect import (
    PromptName,
    Record,
    ServedName,
    Text,
    dialect_router,
    json_response,
    rows,
)
from rayembed.serving.body import Body
from rayembed.serving.messages import EncodeRequest, Inputs
from tests.serving.api.clients import vectors
from tests.serving.conftest import client_of
from tests.serving.fakes import FakeEngine


class ToyRequest(Body):
    engine: ServedName
    word: Text
    purpose: PromptName | None = None


def routes(models, config):
    router = dialect_router("Toy")

    @router.post("/toy")
    async def toy(request: ToyRequest, record: Record):
        asked = EncodeRequest([Inputs([request.word], prompt_name=request.purpose)])
        answer = await models.encode(request.engine, asked, record)
        return json_response({"vector": (await rows(answer))[0]}, answer, request)

    return router


def test_a_new_dialect_answers_fails_and_is_documented_as_the_others(make_client, monkeypatch):
    monkeypatch.setattr(api, "DIALECTS", [*api.DIALECTS, routes])
    client = make_client(FakeEngine(instructions={"query": "find"}))

    answer = client.post("/toy", json={"engine": "fake", "word": "one", "purpose": "query"})
    [expected] = vectors(client, input="one", prompt_name="query")
    np.testing.assert_array_equal(np.float32(answer.json()["vector"]), expected)
    assert answer.headers["X-Rayembed-Model-Digest"] == FakeEngine.digest

    refused = client.post("/toy", json={"engine": "other", "word": "one"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")

    client.get("/health/ready")  # from now on the document knows the model
    document = client.get("/openapi.json").json()
    fields = document["components"]["schemas"]["ToyRequest"]["properties"]
    assert fields["engine"]["enum"] == ["fake"]
    assert fields["purpose"]["anyOf"][0]["enum"] == ["query"]


EMBED, RERANK = "/v1/embeddings", "/v1/rerank"
QUERY = {"instruction": "find"}
SPELLINGS = [  # path, fields of the request, fields of /v1/embeddings that mean the same
    (EMBED, {"input": "one", "task": "RETRIEVAL_QUERY"}, QUERY),
    (EMBED, {"input": "one", "task_type": "RETRIEVAL_DOCUMENT"}, {}),
    (EMBED, {"input": "one", "task": "nl2code.query"}, QUERY),
    (EMBED, {"input": "one", "task": "clustering"}, {"instruction": "group"}),
    (EMBED, {"input": "one", "input_type": "search_query"}, QUERY),
    (EMBED, {"input": "one", "input_type": "Query"}, QUERY),
    (EMBED, {"input": "one", "truncate": "end", "dimensions": 4, "output_dimension": 4}, {"dimensions": 4}),
    ("/openai/v1/embeddings", {"input": "one"}, {}),
]
REFUSED = [  # path, body, what the message says
    (
        EMBED,
        {"input": "one", "dimensions": 4, "output_dimension": 8},
        "output_dimension and dimensions mean the same",
    ),
    (
        RERANK,
        {"query": "q", "documents": ["a", {"content": "b"}]},
        r"documents[1]: it has no text; name the fields",
    ),
    (RERANK, {"query": "q", "documents": [{"a": "b"}], "rank_fields": ["x"]}, "documents[0]: it has no x"),
    (
        EMBED,
        gzip.compress(b'{"input": "one"}', mtime=0),
        "not JSON in UTF-8; send it so, without a Content-Encoding",
    ),
    (EMBED, '{"input": "K\xf6ln"}'.encode("latin-1"), "not JSON in UTF-8"),
]


@pytest.fixture(scope="module")
def instructed():
    return client_of(FakeEngine(instructions={"query": "find", "clustering": "group"}))


@pytest.mark.parametrize(("path", "fields", "meant"), SPELLINGS)
def test_spellings_of_other_services_mean_the_same(instructed, path, fields, meant):
    answer = instructed.post(path, json=fields).json()
    [expected] = vectors(instructed, input="one", **meant)
    np.testing.assert_array_equal(np.float32(answer["data"][0]["embedding"]), expected)


@pytest.mark.parametrize(("path", "body", "message"), REFUSED)
def test_what_has_two_meanings_or_no_text_is_refused_by_place(instructed, path, body, message):
    sent = (
        {"content": body, "headers": {"Content-Type": "application/json"}}
        if isinstance(body, bytes)
        else {"json": body}
    )
    answer = instructed.post(path, **sent)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_fields_of_documents(instructed):
    plain = instructed.post(RERANK, json={"query": "q", "documents": ["one\n2", "two"]}).json()
    documents = [{"title": "one", "year": 2, "rest": "x"}, {"text": "two"}]
    named = instructed.post(
        RERANK, json={"query": "q", "documents": documents, "rank_fields": ["title", "year"]}
    ).json()
    assert named["results"] == plain["results"]


def test_a_byte_order_mark_in_front_of_a_body(instructed):
    headers = {"Content-Type": "application/json"}
    answer = instructed.post(EMBED, content=b'\xef\xbb\xbf{"input": "one"}', headers=headers)
    assert answer.status_code == 200

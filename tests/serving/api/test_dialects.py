"""A dialect is one module and one line of `DIALECTS`."""

import numpy as np

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
        return json_response({"vector": (await rows(answer.vectors))[0]}, answer, request)

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

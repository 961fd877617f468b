"""The OpenAPI document is true: requests made from it get documented answers of the documented shape."""

import pytest
from fastapi.testclient import TestClient

from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine, LocalHandle

config = ServeConfig(
    checkpoint="unused", model_name="fake", max_inputs=50, token_inputs="own", batches="memory://openapi"
)
engine = FakeEngine(instructions={"query": "find", "topics": "sort"}, max_length=512)
app = create_app(config, {"fake": LocalHandle(EmbeddingReplica(config, lambda _: engine))})
TestClient(app).get("/health/ready")  # from now on the document knows the model
OPERATIONS = [
    (path, method.upper()) for path, operations in app.openapi()["paths"].items() for method in operations
]


@pytest.fixture(scope="module")
def schema():
    import schemathesis  # takes seconds, like its pytest plugin, which is switched off in pyproject.toml

    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: value)
def test_answers_are_as_documented(schema, path, method):
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy())
    def answers(case):
        case.call_and_validate()

    answers()


def test_document_has_the_rules_of_the_served_model():
    schemas = TestClient(app).get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["EmbeddingRequest"]["properties"]
    assert fields["model"]["enum"] == ["fake"]
    assert fields["dimensions"]["anyOf"][0]["maximum"] == engine.dimensions
    assert fields["prompt_name"]["anyOf"][0]["enum"] == ["query", "topics"]


def test_every_path_is_documented():
    paths = TestClient(app).get("/openapi.json").json()["paths"]
    expected = ["embeddings", "models", "files", "batches", "rerank"]
    assert {*(f"/v1/{name}" for name in expected), "/v2/embed", "/embed", "/similarity"} <= set(paths)

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from rayembed.serving.config import ServeConfig
from rayembed.serving.ingress import create_app
from rayembed.serving.replica import Encoder
from tests.serving.fakes import FakeEngine, LocalHandle


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    """Client of the real routes over the real replica code, in one process and with the fake engine."""

    def make(engine=None, **settings) -> TestClient:
        config = ServeConfig.parse({"checkpoint": "unused", "model_name": "fake", **settings})
        encoder = Encoder(config, lambda _: engine or FakeEngine())
        return TestClient(create_app(config, LocalHandle(encoder)), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client) -> TestClient:
    return make_client()

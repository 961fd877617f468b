from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import Encoder
from tests.serving.fakes import FakeEngine, LocalHandle


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    """Client of the real routes over the real replica code, in one process and with fake engines.

    `engines` gives a model name its engine; `engine` is the one of all others.
    """

    def make(engine=None, engines=None, keyring=None, **settings) -> TestClient:
        config = ServeConfig.parse({"checkpoint": "unused", "model_name": "fake", **settings})
        handles = {}
        for model in config.all_models:
            chosen = (engines or {}).get(model.served_name, engine or FakeEngine())
            handles[model.served_name] = LocalHandle(Encoder(model, lambda _, chosen=chosen: chosen))
        return TestClient(create_app(config, handles, keyring=keyring), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client) -> TestClient:
    return make_client()

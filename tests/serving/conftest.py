import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray import serve

from rayembed.common.ray_compat import haproxy_settings
from rayembed.serving.app import create_app
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine, LocalHandle, application, load_fake


def client_of(engine=None, engines=None, keyring=None, **settings) -> TestClient:
    """Client of the real routes over the real replica code, in one process and with fake engines.

    `engines` gives a model name its engine; `engine` is the one of all others.
    """
    config = ServeConfig.parse({"checkpoint": "unused", "model_name": "fake", **settings})
    handles = {}
    for model in config.all_models:
        chosen = (engines or {}).get(model.served_name, engine or FakeEngine())
        handles[model.served_name] = LocalHandle(EmbeddingReplica(model, lambda _, chosen=chosen: chosen))
    return TestClient(create_app(config, handles, keyring=keyring), raise_server_exceptions=False)


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    return client_of


@pytest.fixture
def client(make_client) -> TestClient:
    return make_client()


@pytest.fixture(scope="module")
def serve_app() -> Iterator[Callable[[FastAPI], str]]:
    """Puts applications on loopback ports without Ray and returns their URLs."""
    with contextlib.ExitStack() as servers:
        yield lambda app: servers.enter_context(_listening(app))


@contextlib.contextmanager
def _listening(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    [listener] = server.servers
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextlib.contextmanager
def ray_serve(settings: dict[str, str]) -> Iterator[str]:
    """Base URL of a Ray Serve instance without applications, on a Ray with these environment variables."""
    root = Path(__file__).resolve().parents[2]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            runtime_env={"env_vars": {"PYTHONPATH": f"{root}/platform:{root}"}},
        )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def serve_url() -> Iterator[str]:
    """Base URL of Ray Serve behind HAProxy, as `rayembed serve` has it."""
    with ray_serve(haproxy_settings()) as url:
        yield url


@pytest.fixture(scope="module")
def drill_url(serve_url: str) -> Iterator[str]:
    """Base URL of an endpoint on Ray Serve with two model replicas and two front ends."""
    twice = application(load_fake, min_replicas=2, max_replicas=2)
    serve.run(twice, name="drill", route_prefix="/drill")
    yield f"{serve_url}/drill"
    serve.delete("drill")

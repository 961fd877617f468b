"""The endpoint of one machine: real actors and HTTP, without Ray Serve."""

import asyncio
import gc
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import requests

from rayembed.common.errors import CheckpointError, ResourceError
from rayembed.serving import local
from rayembed.serving.config import ServeConfig
from rayembed.serving.deploy import bound_socket
from rayembed.serving.local import (
    LocalEndpoint,
    ReplicaPool,
    _Member,
    check_packages,
    check_room,
    why_not_locally,
)
from rayembed.serving.messages import EncodeRequest, Inputs
from tests.serving.fakes import load_breaking_fake, load_fake, load_slow_fake
from tests.serving.load import replica_pids

BODY = {"model": "fake", "input": ["one", "two words"]}


def load_nothing(settings):
    raise OSError("the disk is gone")


@pytest.fixture(scope="module")
def local_ray():
    root = Path(__file__).resolve().parents[2]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{root}/platform:{root}"}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def start(local_ray):
    """Starts endpoints with fake engines."""
    endpoints = []

    def starting(load, **settings):
        config = ServeConfig.parse(
            {"checkpoint": "unused", "model_name": "fake", "num_cpus": 0.1, **settings}
        )
        endpoints.append(LocalEndpoint(config, None, bound_socket("127.0.0.1", 0), load))
        return endpoints[-1]

    yield starting
    for endpoint in endpoints:
        endpoint.stop()


def ask(endpoint, **body):
    return requests.post(f"{endpoint.url}/v1/embeddings", json=BODY | body, timeout=60)


def test_fixed_number_of_processes_on_one_machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not why_not_locally(ServeConfig(checkpoint="x", min_replicas=2, max_replicas=2))
    assert "min_replicas" in why_not_locally(ServeConfig(checkpoint="x", min_replicas=0, max_replicas=1))
    assert "ingress_replicas" in why_not_locally(ServeConfig(checkpoint="x", ingress_replicas=2))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "RAY_ADDRESS" in why_not_locally(ServeConfig(checkpoint="x"))


def test_replicas_must_fit_the_machine():
    config = ServeConfig(checkpoint="x", num_cpus=2, min_replicas=2, max_replicas=2)
    check_room(config, {"CPU": 4.0})
    with pytest.raises(ResourceError, match="need 4 cores and 0 GPUs, and the machine has 2 and 0"):
        check_room(config, {"CPU": 2.0})


def test_packages_of_the_engines_options_must_be_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setenv("PATH", "")
    options = (
        ({"quantization": "fp8"}, r"rayembed\[torchao\]"),
        ({"compiled": True}, r"C\+\+ compiler g\+\+"),
    )
    for option, message in options:
        config = ServeConfig.parse({"checkpoint": "x", "models": [{"checkpoint": "y", **option}]})
        with pytest.raises(ResourceError, match=message):
            check_packages(config)


@pytest.mark.ray
@pytest.mark.parametrize("replicas", [1, 2])
def test_no_request_fails_when_a_replica_is_killed(start, replicas):
    endpoint = start(load_fake, min_replicas=replicas, max_replicas=replicas)
    victims = replica_pids(endpoint.url)
    assert len(victims) == replicas
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, endpoint) for _ in range(40)]
        answers[5].result()
        os.kill(victims[0], signal.SIGKILL)
        answers += [pool.submit(ask, endpoint) for _ in range(40)]
    assert {answer.result().status_code for answer in answers} == {200}
    deadline = time.monotonic() + 300
    while len(replica_pids(endpoint.url)) < replicas:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.ray
def test_work_of_clients_that_left_is_dropped(start):
    """Each request takes two batches of a fifth of a second."""
    endpoint = start(load_slow_fake, token_budget=4)
    for _ in range(10):
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{endpoint.url}/v1/embeddings", json=BODY, timeout=0.05)
    assert ask(endpoint).status_code == 200
    metrics = requests.get(f"{endpoint.url}/metrics", timeout=60).text
    assert 'status="499"' in metrics
    batches = float(re.search(r"^rayembed_batch_tokens_count.* (\S+)$", metrics, flags=re.MULTILINE)[1])
    assert batches < 2 * 11


@pytest.mark.ray
def test_a_model_that_breaks_is_replaced(start, monkeypatch):
    """The engine fails on every pass after a text with the word wedge; the next process is whole again."""
    monkeypatch.setattr(local, "_CHECK_EVERY_S", 0.2)
    endpoint = start(load_breaking_fake)
    [broken] = replica_pids(endpoint.url)
    ask(endpoint, input="wedge")
    assert ask(endpoint).status_code != 200
    deadline = time.monotonic() + 120
    while ask(endpoint).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert replica_pids(endpoint.url) != [broken]


@pytest.mark.ray
def test_no_request_fails_while_one_of_two_models_is_broken(start, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_CHECK_EVERY_S", 0.2)
    endpoint = start(load_breaking_fake, min_replicas=2, max_replicas=2, checkpoint=str(tmp_path))
    broken, _ = replica_pids(endpoint.url)
    page = requests.get(f"{endpoint.url}/metrics", timeout=60).text
    assert len(set(re.findall(r"rayembed_queued_tokens{.*process=\"(.*?)\"", page))) == 2
    (tmp_path / str(broken)).touch()
    deadline = time.monotonic() + 120
    while broken in replica_pids(endpoint.url):
        assert ask(endpoint).status_code == 200
        assert time.monotonic() < deadline


@pytest.mark.ray
def test_readiness_ends_before_the_endpoint(start):
    endpoint = start(load_fake)
    assert requests.get(f"{endpoint.url}/health/ready", timeout=60).status_code == 200
    endpoint.drain()
    assert requests.get(f"{endpoint.url}/health/ready", timeout=60).status_code == 503
    assert ask(endpoint).status_code == 200


@pytest.mark.ray
def test_what_is_loaded_is_left_out_of_garbage_collections(start):
    gc.unfreeze()
    start(load_fake)
    assert gc.get_freeze_count()
    gc.unfreeze()


@pytest.mark.ray
def test_model_that_does_not_load(start):
    with pytest.raises(CheckpointError, match=r"the endpoint did not start: .*the disk is gone"):
        start(load_nothing)


def test_a_call_goes_to_the_replica_with_the_fewest_unanswered_tokens():
    """One long request and five short ones at replica a and b; then the long one ends."""
    places, ends = [], []

    class Calls:
        def __init__(self, name):
            self._name = name

        async def call(self, method, request):
            places.append(self._name)
            ends.append(asyncio.Event())
            await ends[-1].wait()

    async def scenario():
        pool = ReplicaPool(lambda: None, 2)
        pool._replicas = [_Member(name, None, Calls(name)) for name in ("a", "b")]
        calls = []

        async def send(words):
            calls.append(asyncio.create_task(pool.encode.remote(EncodeRequest([Inputs(["word " * words])]))))
            await asyncio.sleep(0.001)

        for words in (2000, 8, 8, 8, 8, 8):
            await send(words)
        assert places == ["a", "b", "b", "b", "b", "b"]
        ends[0].set()
        await send(1)
        assert places[-1] == "a"
        avoiding = replace(EncodeRequest([Inputs(["x"])]), avoid=frozenset("a"))
        calls.append(asyncio.create_task(pool.encode.remote(avoiding)))
        await asyncio.sleep(0.001)
        assert places[-1] == "b"
        for end in ends:
            end.set()
        await asyncio.gather(*calls)
        assert [each.work for each in pool._replicas] == [0, 0]

    asyncio.run(scenario())

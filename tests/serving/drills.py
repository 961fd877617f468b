"""Processes die, versions change and replicas come and go under load, and no request fails.

Not part of the suite, as it takes minutes: run `pytest tests/serving/drills.py`.
"""

import os
import re
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import openai
import psutil
import pytest
import ray
import requests
from ray import serve
from ray.serve.context import _get_global_client

from rayembed.serving.answers import MODEL_DIGEST_HEADER
from tests.serving.fakes import FakeEngine, application, load_fake, load_slow_fake, load_updated_fake

pytestmark = pytest.mark.ray
CLIENTS = 6


class Load:
    """Requests in a closed loop from several clients."""

    def __init__(self, url):
        self._url = url
        self._stopping = threading.Event()
        self.outcomes = Counter()
        self.digests = []

    def _client(self):
        session = requests.Session()
        while not self._stopping.is_set():
            body = {"model": "fake", "input": ["one", "two words"]}
            try:
                response = session.post(f"{self._url}/v1/embeddings", json=body, timeout=60)
            except requests.RequestException as error:
                self.outcomes[type(error).__name__] += 1
                continue
            self.outcomes[response.status_code] += 1
            self.digests.append(response.headers.get(MODEL_DIGEST_HEADER))

    def wait_for(self, answers):
        """Until so many more requests were answered."""
        target = self.outcomes.total() + answers
        deadline = time.monotonic() + 60
        while self.outcomes.total() < target:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.02)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def url(serve_url):
    serve.run(application(load_fake, min_replicas=2, max_replicas=2), name="drill", route_prefix="/drill")
    yield f"{serve_url}/drill"
    serve.delete("drill")


def replica_pids(url):
    rows = re.findall(r"Encoder#\w+</code></td><td>(\d+)</td>", requests.get(f"{url}/debug").text)
    return [int(pid) for pid in rows]


def wait_for_replicas(url, count):
    """Processes of the model replicas, once there are so many."""
    deadline = time.monotonic() + 120
    while len(pids := replica_pids(url)) != count:
        assert time.monotonic() < deadline, pids
        time.sleep(0.2)
    return pids


def test_killed_model_replica(url):
    victim = wait_for_replicas(url, 2)[0]
    with Load(url).running() as load:
        load.wait_for(50)
        os.kill(victim, signal.SIGKILL)
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_killed_controller(url):
    with Load(url).running() as load:
        load.wait_for(50)
        controller = _get_global_client()._controller
        os.kill(ray.get(controller.get_pid.remote()), signal.SIGKILL)
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_rolling_update(url):
    with Load(url).running() as load:
        load.wait_for(50)
        updated = application(load_updated_fake, min_replicas=2, max_replicas=2)
        serve.run(updated, name="drill", route_prefix="/drill")
        load.wait_for(50)
    assert set(load.outcomes) == {200}, load.outcomes
    assert {load.digests[0], load.digests[-1]} == {FakeEngine.digest, "e" * 64}


def test_killed_proxy_costs_the_client_a_retry(url):
    """Connections break with the proxy's process; the official client tries again by itself."""
    port = int(re.search(r":(\d+)/", url)[1])
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=8)
    listening = [
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening
    for pid in set(listening):
        os.kill(pid, signal.SIGKILL)
    for _ in range(20):
        assert client.embeddings.create(model="fake", input="one").data


def test_model_at_zero_starts_on_request(serve_url):
    idle = application(load_fake, min_replicas=0, max_replicas=1)
    serve.run(idle, name="idle", route_prefix="/idle")
    url = f"{serve_url}/idle"
    assert requests.get(f"{url}/health/ready").status_code == 200
    assert replica_pids(url) == []
    with Load(url).running() as load:
        load.wait_for(20)
    assert set(load.outcomes) == {200}, load.outcomes
    serve.delete("idle")


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"target_ongoing_requests": 1}, {"target_queued_tokens": 5}])
def test_replicas_follow_the_load(serve_url, target):
    growing = application(
        load_slow_fake, max_replicas=2, upscale_delay_s=0, downscale_delay_s=1, token_budget=8, **target
    )
    serve.run(growing, name="growing", route_prefix="/growing")
    url = f"{serve_url}/growing"

    wait_for_replicas(url, 1)
    with Load(url).running() as load:
        wait_for_replicas(url, 2)
    assert set(load.outcomes) == {200}, load.outcomes
    wait_for_replicas(url, 1)
    assert requests.post(f"{url}/v1/embeddings", json={"model": "fake", "input": "x"}).status_code == 200
    serve.delete("growing")

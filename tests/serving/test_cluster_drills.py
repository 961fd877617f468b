"""Processes of the endpoint and Redis die, and replicas come and go under load, and no request fails."""

import os
import re
import shutil
import signal
import socket
import subprocess

import pytest
import ray
import requests
from ray import serve
from ray.serve.context import _get_global_client

from rayembed.serving.cache import REDIS_URL_VARIABLE
from tests.serving.fakes import application, load_fake, load_slow_fake
from tests.serving.load import Load, processes, replica_pids, wait_for_replicas

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill]


class Redis:
    """A server on a loopback port, which keeps nothing."""

    def __init__(self, program):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}"
        self._command = [program, "--bind", "127.0.0.1", "--port", str(self._port), "--save", ""]
        self.start()

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis():
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server: apt-get install redis-server")
    server = Redis(program)
    yield server
    server.kill()


def cache_hits(url):
    """Texts that were found in the cache so far."""
    page = requests.get(f"{url}/metrics", timeout=60).text
    return sum(
        float(count) for count in re.findall(r"^rayembed_cache_hits_total\{.*\} (\S+)$", page, re.MULTILINE)
    )


def test_killed_controller(drill_url):
    with Load(drill_url, max_retries=0).running() as load:
        load.wait_for(50)
        controller = _get_global_client()._controller
        os.kill(ray.get(controller.get_pid.remote()), signal.SIGKILL)
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_killed_ingress_costs_the_client_a_retry(drill_url):
    [victim, _] = processes("ServeReplica:drill:Ingress", 2)
    with Load(drill_url).running() as load:
        load.wait_for(50)
        victim.kill()
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes
    processes("ServeReplica:drill:Ingress", 2)


def test_killed_haproxy_is_replaced(drill_url):
    """A node has one. Another one starts in some seconds, and for half of one it knows no application."""
    [victim] = processes("bin/haproxy", 1)
    with Load(drill_url, max_retries=8).running() as load:
        load.wait_for(50)
        answered = load.outcomes[200]
        victim.kill()
        while load.outcomes[200] < answered + 100:
            load.wait_for(1)
        failed = load.outcomes.total() - load.outcomes[200]
        load.wait_for(100)
    assert set(load.outcomes) <= {200, "NotFoundError('Error code: 404')"}, load.outcomes
    assert load.outcomes.total() - load.outcomes[200] == failed, load.outcomes


def test_killed_proxy_behind_haproxy(drill_url):
    """It answers only where no front end runs."""
    [victim] = processes("ProxyActor", 1)
    with Load(drill_url, max_retries=0).running() as load:
        load.wait_for(50)
        victim.kill()
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_killed_redis(serve_url, redis):
    cached = application(load_fake, runtime_env={"env_vars": {REDIS_URL_VARIABLE: redis.url}}, cache="redis")
    serve.run(cached, name="cached", route_prefix="/cached")
    url = f"{serve_url}/cached"
    with Load(url, max_retries=0).running() as load:
        load.wait_for(50)
        assert cache_hits(url)
        redis.kill()
        load.wait_for(200)
        before = cache_hits(url)
        redis.start()
        while cache_hits(url) == before:
            load.wait_for(10)
    assert set(load.outcomes) == {200}, load.outcomes
    serve.delete("cached")


def test_model_at_zero_starts_on_request(serve_url):
    idle = application(load_fake, min_replicas=0, max_replicas=1)
    serve.run(idle, name="idle", route_prefix="/idle")
    url = f"{serve_url}/idle"
    assert requests.get(f"{url}/health/ready").status_code == 200
    assert replica_pids(url) == []
    with Load(url, max_retries=0).running() as load:
        load.wait_for(20)
    assert set(load.outcomes) == {200}, load.outcomes
    serve.delete("idle")


@pytest.mark.parametrize("target", [{"target_ongoing_requests": 1}, {"target_queued_tokens": 5}])
def test_replicas_follow_the_load(serve_url, target):
    growing = application(
        load_slow_fake, max_replicas=2, upscale_delay_s=0, downscale_delay_s=1, token_budget=8, **target
    )
    serve.run(growing, name="growing", route_prefix="/growing")
    url = f"{serve_url}/growing"

    wait_for_replicas(url, 1)
    with Load(url, max_retries=0).running() as load:
        wait_for_replicas(url, 2)
    assert set(load.outcomes) == {200}, load.outcomes
    wait_for_replicas(url, 1)
    assert requests.post(f"{url}/v1/embeddings", json={"model": "fake", "input": "x"}).status_code == 200
    serve.delete("growing")

"""The controller and the proxy die, and replicas come and go under load, and no request fails."""

import os
import re
import signal

import openai
import psutil
import pytest
import ray
import requests
from ray import serve
from ray.serve.context import _get_global_client

from tests.serving.fakes import application, load_fake, load_slow_fake
from tests.serving.load import Load, replica_pids, wait_for_replicas

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill]


def test_killed_controller(drill_url):
    with Load(drill_url).running() as load:
        load.wait_for(50)
        controller = _get_global_client()._controller
        os.kill(ray.get(controller.get_pid.remote()), signal.SIGKILL)
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_killed_proxy_costs_the_client_a_retry(drill_url):
    """Connections break with the proxy's process; the official client tries again by itself."""
    port = int(re.search(r":(\d+)/", drill_url)[1])
    client = openai.OpenAI(base_url=f"{drill_url}/v1", api_key="unused", max_retries=8)
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

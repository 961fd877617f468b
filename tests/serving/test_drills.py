"""A replica dies and a version changes under load, and no request fails or is sent twice by its client."""

import os
import signal
import time

import pytest
from ray import serve

from tests.serving.fakes import FakeEngine, application, load_breaking_fake, load_updated_fake
from tests.serving.load import Load, replica_pids, wait_for_replicas

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_killed_model_replica(drill_url):
    victim = wait_for_replicas(drill_url, 2)[0]
    with Load(drill_url, max_retries=0).running() as load:
        load.wait_for(50)
        os.kill(victim, signal.SIGKILL)
        load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes


def test_broken_model(serve_url, tmp_path):
    broken = application(load_breaking_fake, min_replicas=2, max_replicas=2, checkpoint=str(tmp_path))
    serve.run(broken, name="broken", route_prefix="/broken")
    url = f"{serve_url}/broken"
    victim = wait_for_replicas(url, 2)[0]
    with Load(url).running() as load:
        load.wait_for(50)
        (tmp_path / str(victim)).touch()
        deadline = time.monotonic() + 300
        while victim in replica_pids(url):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert set(load.outcomes) == {200}, load.outcomes
    serve.delete("broken")


def test_rolling_update(drill_url):
    with Load(drill_url, max_retries=0).running() as load:
        load.wait_for(50)
        updated = application(load_updated_fake, min_replicas=2, max_replicas=2)
        serve.run(updated, name="drill", route_prefix="/drill")
        load.wait_for(50)
    assert set(load.outcomes) == {200}, load.outcomes
    assert {load.digests[0], load.digests[-1]} == {FakeEngine.digest, "e" * 64}

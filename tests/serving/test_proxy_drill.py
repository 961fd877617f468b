"""The proxy that Ray Serve has without HAProxy dies under load, and no request fails."""

import pytest
from ray import serve

from tests.serving.conftest import ray_serve
from tests.serving.fakes import application, load_fake
from tests.serving.load import Load, processes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill]


def test_killed_proxy_costs_the_client_retries():
    """A node has one, which is gone for some seconds: longer than the 1.5 s of the client's default of 2."""
    with ray_serve({}) as url:
        serve.run(application(load_fake, min_replicas=2, max_replicas=2), name="drill", route_prefix="/drill")
        [victim] = processes("ProxyActor", 1)
        with Load(f"{url}/drill", max_retries=8).running() as load:
            load.wait_for(50)
            victim.kill()
            load.wait_for(200)
    assert set(load.outcomes) == {200}, load.outcomes

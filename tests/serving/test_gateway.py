"""What a dying replica means for a request."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from rayembed.serving import gateway as gateway_module
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError
from rayembed.serving.gateway import Gateway
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.records import RequestRecord
from rayembed.serving.replica import Encoder
from tests.serving.fakes import FakeEngine, LocalHandle


class Dying:
    """Loses its first calls as a killed replica does."""

    def __init__(self, encoder, deaths):
        self._encoder = encoder
        self.deaths = deaths

    async def encode(self, request):
        if self.deaths:
            self.deaths -= 1
            raise ActorDiedError()
        return await self._encoder.encode(request)


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setattr(gateway_module, "_FIRST_PAUSE_S", 0)
    config = ServeConfig(checkpoint="unused", model_name="fake", retries=2)

    def ask(deaths):
        replica = Dying(Encoder(config, lambda _: FakeEngine()), deaths)
        gateway = Gateway(config, {"fake": LocalHandle(replica)}, IngressMetrics())
        return asyncio.run(gateway.encode("fake", EncodeRequest([Inputs(["x"])]), RequestRecord("id")))

    return ask


def test_request_outlives_its_replica(ask):
    assert ask(deaths=2).vectors.shape[0] == 1


def test_request_that_kills_every_replica_is_given_up(ask):
    with pytest.raises(ApiError) as failure:
        ask(deaths=3)
    assert failure.value.problem.status == 503
    assert failure.value.problem.retry_after_s == 1

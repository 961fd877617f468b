"""Metrics, logs and pages for those who run the endpoint."""

import asyncio
import json
import logging
from functools import partial
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import ActorDiedError

from rayembed.serving import local, router
from rayembed.serving.api.operations import IngressPeers
from rayembed.serving.authentication import Keyring, KeySettings
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.router import ServeReplicas

SECRET = "sesame-1234"


def embed(client, text, **headers):
    return client.post("/v1/embeddings", json={"model": "fake", "input": text}, headers=headers)


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found, name, **labels):
    [matching] = [
        amount
        for (sample, *sample_labels), amount in found.items()
        if sample == name and labels.items() <= dict(sample_labels).items()
    ]
    return matching


def test_metrics_of_all_processes_in_one_scrape(client):
    embed(client, ["one", "w " * 20])
    embed(client, "")
    client.get("/nowhere")
    found = samples(client)
    assert value(found, "rayembed_inputs_total", model="fake", process="local") == 2
    assert value(found, "rayembed_tokens_total") == 10
    assert value(found, "rayembed_truncated_inputs_total") == 1
    assert value(found, "rayembed_batch_tokens_sum") == 10
    assert value(found, "rayembed_queued_tokens") == 0
    assert value(found, "rayembed_wait_seconds_count") == 2
    assert value(found, "rayembed_compute_seconds_count") == 1
    assert value(found, "rayembed_responses_total", route="/v1/embeddings", status="200", model="fake") == 1
    assert value(found, "rayembed_responses_total", route="/v1/embeddings", status="400") == 1
    assert value(found, "rayembed_responses_total", route="unmatched", status="404") == 1
    assert value(found, "rayembed_request_seconds_count", route="/v1/embeddings") == 2


def test_access_log_has_no_inputs(make_client, caplog):
    client = make_client(access_log=True)
    with caplog.at_level(logging.INFO, logger="rayembed.access"):
        embed(client, SECRET, **{"X-Request-Id": "r1"})
    [line] = {record.message for record in caplog.records if record.name == "rayembed.access"}
    line = json.loads(line)
    assert line.pop("seconds") >= 0
    assert line == {
        "route": "/v1/embeddings",
        "status": 200,
        "request_id": "r1",
        "client": "",
        "model": "fake",
        "inputs": 1,
        "tokens": 2,
        "truncated": 0,
        "digest": "f" * 64,
    }
    assert SECRET not in caplog.text


def test_debug_page_shows_models_replicas_and_responses(client):
    embed(client, "one")
    page = client.get("/debug").text
    assert "fake" in page
    assert "f" * 12 in page
    assert "/v1/embeddings" in page


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs", "/debug"):
        page = client.get(path).text
        assert "https://" not in page, path
        assert "//cdn" not in page, path
    assert client.get("/assets/style.css").headers["content-type"].startswith("text/css")
    assert client.get("/assets/playground.html").status_code == 404
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


class Siblings:
    """A Serve handle of four front ends: two answer, one dies and one hangs."""

    def __init__(self, own_metrics):
        self._answers = own_metrics

    def broadcast(self, method):
        assert method == "own_metrics"

        async def answer(process):
            if process == "dead":
                raise ActorDiedError
            await asyncio.sleep(3600 if process == "hung" else 0)
            return process, self._answers()[1]

        async def calls():
            processes = ("a", "dead", "hung", "b")
            return [SimpleNamespace(get_async=partial(answer, process)) for process in processes]

        return SimpleNamespace(_fetch_replica_results_async=calls)


def test_front_ends_that_die_or_hang_hide_no_others(monkeypatch):
    monkeypatch.setattr(router, "_READY_TIMEOUT_S", 0.1)
    metrics = IngressMetrics()
    own = IngressPeers("local", metrics)
    peers = IngressPeers("local", metrics, ServeReplicas(Siblings(own.own_metrics)))
    assert [process for process, _ in asyncio.run(peers.metrics())] == ["a", "b"]


def test_replicas_that_die_or_hang_hide_no_others(monkeypatch):
    monkeypatch.setattr(router, "_READY_TIMEOUT_S", 0.1)

    class Calls:
        def __init__(self, name):
            self._name = name

        async def call(self, method):
            if self._name == "dead":
                raise ActorDiedError
            await asyncio.sleep(3600 if self._name == "hung" else 0)
            return self._name

        def close(self):
            pass

    monkeypatch.setattr(local.ray, "kill", lambda actor: None)

    async def scenario():
        pool = local.ReplicaPool(lambda: None, 4)
        pool._replicas = [local._Member(name, None, Calls(name)) for name in ("a", "dead", "hung", "b")]
        return await pool.answers("metrics")

    assert asyncio.run(scenario()) == ["a", "b"]


def test_readiness_ends_with_draining():
    from fastapi.testclient import TestClient

    from rayembed.serving.app import create_app
    from rayembed.serving.config import ServeConfig
    from rayembed.serving.replica import EmbeddingReplica
    from tests.serving.fakes import FakeEngine, LocalHandle

    config = ServeConfig(checkpoint="unused", model_name="fake")
    peers = IngressPeers("local", IngressMetrics())
    replicas = {"fake": LocalHandle(EmbeddingReplica(config, lambda _: FakeEngine()))}
    client = TestClient(create_app(config, replicas, peers=peers))
    assert client.get("/health/ready").status_code == 200
    peers.draining = True
    assert client.get("/health/ready").status_code == 503
    assert embed(client, "still answered").status_code == 200


def test_pages_of_allowed_addresses_may_ask(make_client):
    asking = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    keyring = Keyring([KeySettings(name="a", key="KEY")])
    allowed = make_client(cors_origins="http://localhost:3000", keyring=keyring)
    answer = allowed.options("/v1/embeddings", headers=asking)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    refused = make_client().options("/v1/embeddings", headers=asking)
    assert (refused.status_code, "cors_origins" in refused.text) == (405, True)

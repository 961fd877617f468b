"""The HTTP side as a Ray Serve deployment."""

from collections.abc import Mapping

from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from rayembed.common import logs, ray_compat
from rayembed.serving import tracing
from rayembed.serving.api.operations import IngressPeers, IngressSummary
from rayembed.serving.app import create_app
from rayembed.serving.authentication import load_keyring
from rayembed.serving.config import ServeConfig
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.replica import process_name

INGRESS_NAME = "Ingress"


@serve.ingress()
class Ingress:
    """Ray Serve deployment that owns the HTTP routes."""

    def __init__(self, config: ServeConfig, replicas: Mapping[str, DeploymentHandle]):
        """Raises ConfigError when keys are needed and there are none."""
        logs.configure()
        tracing.configure()
        self._config = config
        self._replicas = replicas
        self._metrics = IngressMetrics()
        application = serve.get_replica_context().app_name
        peers = serve.get_deployment_handle(INGRESS_NAME, application)
        self._peers = IngressPeers(process_name(), self._metrics, peers)
        self._keyring = load_keyring(
            config.authentication,
            config.api_keys_file,
            ray_compat.serve_http_host(),
            1 / config.ingress_replicas,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve in each ingress replica."""
        return create_app(
            self._config,
            self._replicas,
            keyring=self._keyring,
            metrics=self._metrics,
            peers=self._peers,
        )

    async def own_metrics(self) -> tuple[str, list[Metric]]:
        """Name and metrics of this front end."""
        return self._peers.own_metrics()

    async def own_summary(self) -> IngressSummary:
        """What this front end answered."""
        return self._peers.own_summary()

    async def drain(self) -> None:
        """Make the readiness probe fail; requests are answered as before."""
        self._peers.draining = True

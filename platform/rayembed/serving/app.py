"""The HTTP side: the FastAPI application with all routes, errors and pages, and its Ray Serve deployment."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.middleware.cors import CORSMiddleware

import rayembed
from rayembed.common import logs, ray_compat
from rayembed.serving import api, middleware, tracing
from rayembed.serving.api import batches, operations
from rayembed.serving.api.dialect import describe_served_models
from rayembed.serving.api.operations import IngressPeers, IngressSummary
from rayembed.serving.authentication import Keyring, load_keyring
from rayembed.serving.batch_store import BatchStore
from rayembed.serving.batch_worker import BatchWorker
from rayembed.serving.body import BodyLimitMiddleware
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import install_handlers
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.replica import process_name
from rayembed.serving.router import ModelRouter, ServeReplicas

INGRESS_NAME = "Ingress"


def create_app(
    config: ServeConfig,
    replicas: Mapping[str, Any],
    *,
    keyring: Keyring | None = None,
    metrics: IngressMetrics | None = None,
    peers: IngressPeers | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        config: settings.
        replicas: for each model its replicas; `replicas.METHOD.remote(...)` asks one of them and
            `replicas.answers(METHOD)` all; both are awaitable.
        keyring: keys that requests must show; None for none.
        metrics: where responses are counted.
        peers: this front end among its peers; None where it is the only one.

    Raises:
        UserError: `config.batches` names no folder that can be used.
    """
    metrics = metrics or IngressMetrics()
    models = ModelRouter(config, replicas, metrics)
    worker = BatchWorker(BatchStore(config.batches), models, config, keyring) if config.batches else None
    app = FastAPIOffline(
        title="rayembed",
        description="Text embeddings through the interfaces of OpenAI, Cohere and text-embeddings-inference.",
        version=rayembed.__version__,
        redoc_url=None,
        strict_content_type=False,
        lifespan=worker.lifespan if worker else None,
    )
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_bytes=config.max_body_bytes)
    if keyring:
        app.add_middleware(middleware.AuthenticationMiddleware, keyring=keyring)
    if config.cors_origins:  # outside of the keys, which a browser's first question does not carry
        app.add_middleware(
            CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(middleware.ObservationMiddleware, metrics=metrics, access_log=config.access_log)
    install_handlers(app)
    for dialect in api.DIALECTS:
        app.include_router(dialect(models, config))
    app.include_router(batches.routes(worker, config.max_file_bytes))
    app.include_router(operations.routes(models, peers or IngressPeers("local", metrics)))
    app.include_router(operations.pages(models))
    describe_served_models(app, models, config.max_inputs, with_keys=keyring is not None)
    return app


@serve.ingress()
class Ingress:
    """Ray Serve deployment that owns the HTTP routes."""

    def __init__(self, config: ServeConfig, replicas: Mapping[str, DeploymentHandle]):
        """Raises ConfigError when keys are needed and there are none."""
        logs.configure()
        tracing.configure()
        self._config = config
        self._replicas = {model: ServeReplicas(handle) for model, handle in replicas.items()}
        self._metrics = IngressMetrics()
        application = serve.get_replica_context().app_name
        peers = ServeReplicas(serve.get_deployment_handle(INGRESS_NAME, application))
        self._peers = IngressPeers(process_name(), self._metrics, peers)
        self._keyring = load_keyring(
            config.authentication,
            config.api_keys_file,
            ray_compat.serve_http_host(),
            1 / config.front_ends,
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

"""The FastAPI application: all routes, errors and pages over a `ModelRouter`."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import rayembed
from rayembed.serving import api, middleware
from rayembed.serving.api import openapi, operations, pages
from rayembed.serving.api.operations import IngressPeers
from rayembed.serving.authentication import Keyring
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import install_handlers
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.router import ModelRouter


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
        replicas: for each model the handle of its replicas; `handle.METHOD.remote(...)` must be awaitable
            and `handle.broadcast(METHOD)` as in Ray Serve.
        keyring: keys that requests must show; None for none.
        metrics: where responses are counted.
        peers: this front end among its peers; None where it is the only one.
    """
    metrics = metrics or IngressMetrics()
    models = ModelRouter(config, replicas, metrics)
    app = FastAPIOffline(
        title="rayembed",
        description="Text embeddings through the interfaces of OpenAI, Cohere and text-embeddings-inference.",
        version=rayembed.__version__,
        redoc_url=None,
        strict_content_type=False,
    )
    # The last one added is the outermost.
    app.add_middleware(middleware.BodyLimitMiddleware, max_bytes=config.max_body_bytes)
    if keyring:
        app.add_middleware(middleware.AuthenticationMiddleware, keyring=keyring)
    app.add_middleware(middleware.ObservationMiddleware, metrics=metrics, access_log=config.access_log)
    install_handlers(app)
    for dialect in api.DIALECTS:
        app.include_router(dialect(models, config))
    app.include_router(operations.routes(models, peers or IngressPeers("local", metrics)))
    app.include_router(pages.routes(models))
    openapi.describe_served_models(app, models, config.max_inputs)
    return app

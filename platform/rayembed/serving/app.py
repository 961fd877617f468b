"""The FastAPI application: all routes, errors and pages over a gateway."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import rayembed
from rayembed.serving import middleware
from rayembed.serving.authentication import Keyring
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import install_handlers
from rayembed.serving.front import Front
from rayembed.serving.gateway import Gateway
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.openapi import describe_served_models
from rayembed.serving.routes.cohere import cohere_routes
from rayembed.serving.routes.inference import inference_routes
from rayembed.serving.routes.openai import openai_routes
from rayembed.serving.routes.operations import operation_routes
from rayembed.serving.routes.pages import page_routes


def create_app(
    config: ServeConfig,
    encoders: Mapping[str, Any],
    *,
    keyring: Keyring | None = None,
    metrics: IngressMetrics | None = None,
    front: Front | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        config: settings.
        encoders: for each model its handle to `Encoder`; `handle.METHOD.remote(...)` must be awaitable and
            `handle.broadcast(METHOD)` as in Ray Serve.
        keyring: keys that requests must show; None for none.
        metrics: where responses are counted.
        front: this front end among its siblings.
    """
    metrics = metrics or IngressMetrics()
    gateway = Gateway(config, encoders, metrics)
    app = FastAPIOffline(
        title="rayembed",
        description="Text embeddings through the interfaces of OpenAI, Cohere and text-embeddings-inference.",
        version=rayembed.__version__,
        redoc_url=None,
        strict_content_type=False,
    )
    # The last one added is the outermost.
    app.add_middleware(middleware.BodyLimit, max_bytes=config.max_body_bytes)
    if keyring:
        app.add_middleware(middleware.Authentication, keyring=keyring)
    app.add_middleware(middleware.Observation, metrics=metrics, access_log=config.access_log)
    install_handlers(app)
    app.include_router(openai_routes(gateway))
    app.include_router(cohere_routes(gateway))
    app.include_router(inference_routes(gateway, config))
    app.include_router(operation_routes(gateway, front or Front("local", metrics)))
    app.include_router(page_routes(gateway))
    describe_served_models(app, gateway, config)
    return app

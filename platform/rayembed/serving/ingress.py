"""The HTTP side: checks a request, asks a model replica, and writes the answer in OpenAI's shape."""

import asyncio
import base64
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import rayembed
from rayembed import logs
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem, install_handlers, overloaded, unavailable
from rayembed.serving.replica import Embeddings, EncodeRequest
from rayembed.serving.schemas import (
    ERROR_RESPONSES,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelCard,
    ModelList,
)

MODEL_DIGEST_HEADER = "X-Rayembed-Model-Digest"
TRUNCATED_HEADER = "X-Rayembed-Truncated"
_READY_TIMEOUT_S = 5
_Answer = TypeVar("_Answer")


@serve.ingress()
class Ingress:
    """Ray Serve deployment that owns the HTTP routes."""

    def __init__(self, config: ServeConfig, encoder: DeploymentHandle):
        logs.configure()
        self._config = config
        self._encoder = encoder

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve in each ingress replica."""
        return create_app(self._config, self._encoder)


def create_app(config: ServeConfig, encoder: Any) -> FastAPI:
    """The routes over a handle to `Encoder`; `encoder.METHOD.remote(...)` must be awaitable."""
    app = FastAPI(
        title="rayembed",
        description="Text embeddings through an OpenAI-compatible interface.",
        version=rayembed.__version__,
        strict_content_type=False,
    )
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    install_handlers(app)

    @app.post("/v1/embeddings", response_model=EmbeddingResponse, responses=ERROR_RESPONSES)
    async def embeddings(request: EmbeddingRequest) -> Response:
        """Embed one or several inputs."""
        _check_model(request.model)
        asked = EncodeRequest(
            texts=request.texts(),
            token_ids=request.token_ids(),
            instruction=request.instruction,
            prompt_name=request.prompt_name,
            input_type=request.input_type,
            dimensions=request.dimensions,
        )
        _check_count(len(asked.texts) + len(asked.token_ids))
        answer = await _ask(encoder.encode.remote(asked))
        if isinstance(answer, Problem):
            raise ApiError(answer)
        return _response(answer, config.served_name, request.encoding_format)

    @app.get("/v1/models", response_model=ModelList, responses=ERROR_RESPONSES)
    async def models() -> ModelList:
        """The served model."""
        return ModelList(data=[await _ask(encoder.describe.remote())])

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERROR_RESPONSES)
    async def model(name: str) -> ModelCard:
        """The served model by its name."""
        _check_model(name)
        return await _ask(encoder.describe.remote())

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the HTTP side runs."""
        return {"status": "live"}

    @app.get("/health/ready", responses=ERROR_RESPONSES)
    async def ready() -> dict[str, str]:
        """Whether a model replica answers."""
        try:
            card = await asyncio.wait_for(_ask(encoder.describe.remote()), _READY_TIMEOUT_S)
        except TimeoutError as error:
            raise ApiError(unavailable(f"no model replica answered in {_READY_TIMEOUT_S} s")) from error
        return {"status": "ready", "model": card.id, "digest": card.digest}

    def _check_count(count: int) -> None:
        if count > config.max_inputs:
            message = (
                f"input has {count} items and a request takes {config.max_inputs}; send several requests"
            )
            raise ApiError(Problem(400, message, param="input"))

    def _check_model(name: str) -> None:
        if name != config.served_name:
            raise ApiError(
                Problem(
                    404,
                    f"no such model; this endpoint serves {config.served_name}",
                    "model",
                    "model_not_found",
                )
            )

    return app


class BodyLimit:
    """Refuses a body above `max_bytes` while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point; raises HTTPException 413 into the application's read of the body."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


async def _ask(answer: Awaitable[_Answer]) -> _Answer:
    """Await a replica's answer and give its absence the right status."""
    try:
        return await answer
    except BackPressureError as error:
        raise ApiError(overloaded(1)) from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise ApiError(unavailable("the model replica is not available")) from error


def _response(answer: Embeddings, model: str, encoding_format: str) -> Response:
    vectors = answer.vectors.astype("<f4", copy=False)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {
            "prompt_tokens": answer.tokens,
            "total_tokens": answer.tokens,
            "truncated": answer.truncated,
        },
    }
    return Response(
        json.dumps(body, separators=(",", ":")),
        media_type="application/json",
        headers={MODEL_DIGEST_HEADER: answer.digest, TRUNCATED_HEADER: str(answer.truncated)},
    )


def _encoded(vector: np.ndarray, encoding_format: str) -> list[float] | str:
    return base64.b64encode(vector.tobytes()).decode() if encoding_format == "base64" else vector.tolist()

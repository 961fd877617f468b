"""OpenAI's paths: /v1/embeddings and /v1/models."""

from fastapi import APIRouter
from fastapi.responses import Response

from rayembed.serving.answers import openai_response
from rayembed.serving.gateway import Gateway
from rayembed.serving.messages import EncodeRequest
from rayembed.serving.routes.parameters import Record, Trace, WorkPriority
from rayembed.serving.schemas.errors import ERROR_RESPONSES
from rayembed.serving.schemas.openai import EmbeddingRequest, EmbeddingResponse, ModelCard, ModelList


def openai_routes(gateway: Gateway) -> APIRouter:
    """Routes that the clients of OpenAI use."""
    router = APIRouter(tags=["OpenAI"], responses=ERROR_RESPONSES)

    @router.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def embeddings(
        request: EmbeddingRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Embed one or several inputs."""
        asked = EncodeRequest(
            [request.inputs()],
            dimensions=request.dimensions,
            truncate=request.truncate,
            normalize=request.normalize,
            priority=priority,
            trace=trace,
        )
        answer = await gateway.encode(request.model, asked, record)
        return openai_response(answer, request.model, request.encoding_format, request.formats())

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The served models."""
        return ModelList(data=await gateway.cards())

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """A served model by its name or an alias."""
        return await gateway.card(name)

    return router

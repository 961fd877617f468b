"""Cohere's paths: /v2/embed, and reranking as Cohere and Jina have it."""

from fastapi import APIRouter
from fastapi.responses import Response

from rayembed.serving.answers import cohere_response, rerank_response
from rayembed.serving.gateway import Gateway
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.routes.parameters import Record, Trace, WorkPriority
from rayembed.serving.schemas.cohere import (
    INPUT_TYPES,
    CohereEmbedRequest,
    CohereEmbedResponse,
    RerankRequest,
    RerankResponse,
)
from rayembed.serving.schemas.errors import ERROR_RESPONSES


def cohere_routes(gateway: Gateway) -> APIRouter:
    """Routes that the clients of Cohere use."""
    router = APIRouter(tags=["Cohere"], responses=ERROR_RESPONSES)

    @router.post("/v2/embed", response_model=CohereEmbedResponse)
    async def embed(
        request: CohereEmbedRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Embed texts."""
        input_type = INPUT_TYPES.get(request.input_type, request.input_type)
        asked = EncodeRequest(
            [Inputs(request.texts, input_type=input_type)],
            dimensions=request.output_dimension,
            truncate=request.truncate,
            priority=priority,
            trace=trace,
        )
        answer = await gateway.encode(request.model, asked, record)
        return cohere_response(answer, request.texts, request.embedding_types)

    @router.post("/v1/rerank", response_model=RerankResponse)
    @router.post("/v2/rerank", response_model=RerankResponse, include_in_schema=False)
    @router.post("/rerank", response_model=RerankResponse, include_in_schema=False)
    async def rerank(
        request: RerankRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Order documents by their cosine to a query."""
        named = request.instruction is not None or request.prompt_name is not None
        query = Inputs(
            [request.query],
            instruction=request.instruction,
            prompt_name=request.prompt_name,
            input_type=None if named else "query",
        )
        asked = EncodeRequest(
            [query, Inputs(request.texts())], truncate=request.truncate, priority=priority, trace=trace
        )
        answer = await gateway.encode(request.model, asked, record)
        return rerank_response(answer, request, request.model)

    return router

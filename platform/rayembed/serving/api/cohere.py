"""Cohere's /v2/embed, and reranking as Cohere and Jina have it."""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from rayembed.serving.api.dialect import (
    ERROR_RESPONSES,
    AnyText,
    Count,
    Dimensions,
    EmbeddingType,
    EmbeddingUsage,
    InputsNextToQuery,
    PromptName,
    Record,
    ServedName,
    Text,
    Texts,
    Trace,
    Truncate,
    WorkPriority,
    as_type,
    json_response,
    similarities,
    usage,
)
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import Embeddings, EncodeRequest, Inputs
from rayembed.serving.router import ModelRouter

_INPUT_TYPES = {"search_query": "query", "search_document": "document"}
"""Cohere's names of what OpenAI's dialect calls query and document; others are names of instructions."""


class CohereEmbedRequest(BaseModel):
    """Body of POST /v2/embed."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ServedName
    texts: Texts
    input_type: Literal["search_query", "search_document", "classification", "clustering"] = Field(
        "search_document",
        description="classification and clustering use the instruction of that name, if the model has it",
    )
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1)] = ["float"]
    output_dimension: Dimensions | None = None
    truncate: Truncate = "END"


class CohereEmbedResponse(BaseModel):
    """Body of a successful POST /v2/embed."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[EmbeddingType, list[list[float]]]
    texts: list[str]
    meta: dict[str, Any]


class RerankDocument(BaseModel):
    """A document in the form of an object."""

    text: Text


class RerankRequest(BaseModel):
    """Body of POST /v1/rerank, /v2/rerank and /rerank."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ServedName
    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1), InputsNextToQuery]
    top_n: Count | None = None
    return_documents: StrictBool = False
    instruction: AnyText | None = Field(
        None, description="instruction of the query; default: the model's query instruction"
    )
    prompt_name: PromptName | None = None
    truncate: Truncate = "END"

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(BaseModel):
    """One document and its cosine to the query."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(BaseModel):
    """Body of a successful rerank request, best document first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    meta: dict[str, Any]


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
    """Routes that the clients of Cohere use."""
    router = APIRouter(tags=["Cohere"], responses=ERROR_RESPONSES)

    @router.post("/v2/embed", response_model=CohereEmbedResponse)
    async def embed(
        request: CohereEmbedRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Embed texts."""
        input_type = _INPUT_TYPES.get(request.input_type, request.input_type)
        asked = EncodeRequest(
            [Inputs(request.texts, input_type=input_type)],
            dimensions=request.output_dimension,
            truncate=request.truncate,
            priority=priority,
            trace=trace,
        )
        return _embed_response(request, await models.encode(request.model, asked, record))

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
        return _rerank_response(request, await models.encode(request.model, asked, record))

    return router


def _embed_response(request: CohereEmbedRequest, answer: Embeddings) -> Response:
    body = {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_by_type",
        "embeddings": {kind: as_type(answer.vectors, kind) for kind in request.embedding_types},
        "texts": request.texts,
        "meta": _meta(answer),
    }
    return json_response(body, answer)


def _rerank_response(request: RerankRequest, answer: Embeddings) -> Response:
    """The first vector of `answer` is the query's, the others are the documents'."""
    scores = similarities(answer)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    texts = request.texts()
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if request.return_documents else {})
        for index in order
    ]
    body = {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": request.model,
        "results": results,
        "usage": usage(answer),
        "meta": _meta(answer),
    }
    return json_response(body, answer)


def _meta(answer: Embeddings) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": answer.tokens},
    }
    if answer.truncated:
        meta["warnings"] = [f"{answer.truncated} inputs were cut to the model's maximum length"]
    return meta

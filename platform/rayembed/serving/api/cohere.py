"""Cohere's /v2/embed and /v1/embed."""

import uuid
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from rayembed.serving.api.dialect import (
    Count,
    Dimensions,
    EmbeddingType,
    Record,
    ServedName,
    Texts,
    Truncate,
    WorkPriority,
    dialect_router,
    json_response,
    rows,
)
from rayembed.serving.body import Body, refused
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import Embeddings, EncodeRequest, Inputs
from rayembed.serving.router import ModelRouter

_INPUT_TYPES = {"search_query": "query", "search_document": "document"}
"""Cohere's names of what OpenAI's dialect calls query and document; others are names of instructions."""
CohereType = Literal[EmbeddingType, "base64"]


class CohereEmbedRequest(Body):
    """Body of POST /v2/embed."""

    ignored: ClassVar = {"priority": None}

    model: ServedName = ""
    texts: Texts
    input_type: Literal["search_query", "search_document", "classification", "clustering"] = Field(
        "search_document",
        description="classification and clustering use the instruction of that name, if the model has it",
    )
    embedding_types: Annotated[list[CohereType], Field(fail_fast=True, min_length=1, max_length=6)] = Field(
        ["float"]
    )
    output_dimension: Dimensions | None = None
    max_tokens: Count | None = Field(
        None, description="limit on each text, its instruction apart, below the model's own"
    )
    truncate: Truncate = "END"

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """`inputs` is Cohere's form for texts and images."""
        if isinstance(kind := values.get("input_type"), str):
            values["input_type"] = kind.lower()
        if "inputs" in values and "texts" not in values:
            items = values.pop("inputs")
            values["texts"] = [_text_of(item) for item in (items if isinstance(items, list) else [items])]


class CohereV1EmbedRequest(CohereEmbedRequest):
    """Body of POST /v1/embed; without embedding_types the answer is the bare vectors."""


def _text_of(item: Any) -> str:
    parts = item.get("content") if isinstance(item, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
    ):
        raise refused("inputs: this endpoint embeds texts; each needs content of the type text", "inputs")
    return "".join(part["text"] for part in parts)


class CohereEmbedResponse(BaseModel):
    """Body of a successful POST /v2/embed."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[CohereType, list[list[float]] | list[str]]
    texts: list[str]
    meta: dict[str, Any]


class CohereV1EmbedResponse(BaseModel):
    """Body of a successful POST /v1/embed."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: dict[CohereType, list[list[float]] | list[str]] | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
    """Routes that the clients of Cohere use."""
    router = dialect_router("Cohere")

    async def answer_to(request: CohereEmbedRequest, record: Record, priority: WorkPriority) -> Embeddings:
        input_type = _INPUT_TYPES.get(request.input_type, request.input_type)
        asked = EncodeRequest(
            [Inputs(request.texts, input_type=input_type, max_tokens=request.max_tokens)],
            dimensions=request.output_dimension,
            truncate=request.truncate,
            priority=priority,
            wants_ranges=not {"float", "base64"}.issuperset(request.embedding_types),
        )
        return await models.encode(request.model, asked, record)

    @router.post("/v2/embed", response_model=CohereEmbedResponse)
    async def embed(
        request: CohereEmbedRequest, record: Record, priority: WorkPriority = "online"
    ) -> Response:
        """Embed texts."""
        return await _response(request, await answer_to(request, record, priority), "2")

    @router.post("/v1/embed", response_model=CohereV1EmbedResponse)
    async def embed_v1(
        request: CohereV1EmbedRequest, record: Record, priority: WorkPriority = "online"
    ) -> Response:
        """Embed texts, as older clients ask."""
        return await _response(request, await answer_to(request, record, priority), "1")

    return router


async def _response(request: CohereEmbedRequest, answer: Embeddings, version: str) -> Response:
    by_type = version == "2" or "embedding_types" in request.model_fields_set
    embeddings = {kind: await _of_type(answer, kind) for kind in request.embedding_types}
    body = {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
        "embeddings": embeddings if by_type else embeddings["float"],
        "texts": request.texts,
        "meta": meta(answer, version),
    }
    return json_response(body, answer, request)


async def _of_type(answer: Embeddings, kind: CohereType) -> list[Any]:
    if kind == "base64":
        return await rows(answer, encoding_format="base64")
    return await rows(answer, kind)


def meta(answer: Embeddings, version: str = "2") -> dict[str, Any]:
    """Cohere's account of a request."""
    billed: dict[str, Any] = {"api_version": {"version": version}}
    billed["billed_units"] = {"input_tokens": answer.tokens}
    if answer.truncated:
        billed["warnings"] = [f"{answer.truncated} inputs were cut to the model's maximum length"]
    return billed

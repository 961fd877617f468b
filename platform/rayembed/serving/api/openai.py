"""OpenAI's /v1/embeddings and /v1/models, plus optional fields of our own."""

from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from rayembed.serving.api.dialect import (
    ERROR_RESPONSES,
    AllInputs,
    AnyText,
    Dimensions,
    EmbeddingType,
    EmbeddingUsage,
    PromptName,
    Record,
    ServedName,
    Text,
    Texts,
    TokenIds,
    Trace,
    Truncate,
    WorkPriority,
    as_type,
    json_response,
    rows,
    usage,
)
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import Embeddings, EncodeRequest, Inputs, ModelCard
from rayembed.serving.router import ModelRouter


class EmbeddingRequest(BaseModel):
    """Body of POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    input: Annotated[
        Text | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1), AllInputs],
        Field(
            union_mode="left_to_right",
            description="one text, texts, one text's token ids, or several texts' ids",
        ),
    ]
    model: ServedName = Field(description="name of a served model; GET /v1/models lists them")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 sends little-endian 32-bit floats, or the bytes of a quantised vector"
    )
    dimensions: Dimensions | None = Field(
        None, description="cut the vectors to this width and scale them back to length 1; default: full width"
    )
    user: StrictStr | None = Field(None, description="accepted for compatibility and ignored")
    instruction: AnyText | None = Field(
        None,
        description="what the texts are for; wins over prompt_name and input_type; empty: none",
    )
    prompt_name: PromptName | None = Field(
        None, description="name of an instruction that the model was trained with; GET /v1/models lists them"
    )
    input_type: Literal["query", "passage", "document"] | None = Field(
        None, description="query uses the model's query instruction; passage and document use none"
    )
    truncate: Truncate = "END"
    normalize: StrictBool = Field(
        True, description="false: vectors cut by `dimensions` stay shorter than length 1"
    )
    embedding_type: EmbeddingType = Field("float", description="number format of the vectors")
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1)] | None = Field(
        None, description="several formats at once, in each item's field `embeddings`"
    )

    def inputs(self) -> Inputs:
        """The inputs and the instruction fields."""
        items = [self.input] if isinstance(self.input, str) else self.input
        numbers = [item for item in items if isinstance(item, int)]
        return Inputs(
            texts=[item for item in items if isinstance(item, str)],
            token_ids=[numbers] if numbers else [item for item in items if isinstance(item, list)],
            instruction=self.instruction,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
        )

    def formats(self) -> list[EmbeddingType]:
        """Number formats of the vectors, the one of the field `embedding` first."""
        return self.embedding_types or [self.embedding_type]


class EmbeddingItem(BaseModel):
    """One vector; `embeddings` is there when several formats were asked for."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    embeddings: dict[EmbeddingType, list[float] | str] | None = None


class EmbeddingResponse(BaseModel):
    """Body of a successful POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
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
        return _response(request, await models.encode(request.model, asked, record))

    @router.get("/v1/models", name="models")
    async def list_models() -> ModelList:
        """The served models."""
        return ModelList(data=await models.cards())

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """A served model by its name or an alias."""
        return await models.card(name)

    return router


def _response(request: EmbeddingRequest, answer: Embeddings) -> Response:
    formats = request.formats()
    encoded = {kind: rows(as_type(answer.vectors, kind), request.encoding_format) for kind in formats}
    items = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(encoded[formats[0]])
    ]
    if len(formats) > 1:
        for index, item in enumerate(items):
            item["embeddings"] = {kind: vectors[index] for kind, vectors in encoded.items()}
    body = {"object": "list", "data": items, "model": request.model, "usage": usage(answer)}
    return json_response(body, answer)

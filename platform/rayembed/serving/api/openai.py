"""OpenAI's /v1/embeddings and /v1/models, with the fields of Azure, vLLM, Jina, Voyage and NIM."""

import re
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictBool, StrictStr

from rayembed.serving.api.dialect import (
    AnyText,
    Count,
    Dimensions,
    EmbeddingType,
    EmbeddingUsage,
    PromptName,
    Record,
    ServedName,
    SomeInputs,
    Truncate,
    WorkPriority,
    dialect_router,
    json_response,
    rows,
    split_inputs,
    truncation_of,
    usage,
)
from rayembed.serving.body import Body, refused
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import Embeddings, EncodeRequest, Inputs, ModelCard, Priority
from rayembed.serving.middleware import RequestRecord
from rayembed.serving.router import ModelRouter

Formats = Annotated[list[EmbeddingType], Field(fail_fast=True, min_length=1, max_length=5)]
_SIDE = re.compile(r"(?:.*\.|(?:retrieval|search)_)?(query|passage|document)", re.IGNORECASE)


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings."""

    renamed: ClassVar = {
        "normalized": "normalize",
        "output_dimension": "dimensions",
        "output_dtype": "embedding_type",
        "truncate_prompt_tokens": "max_tokens",
        "task_type": "task",
    }
    ignored: ClassVar = {
        "user": None,
        "safety_identifier": None,
        "metadata": None,
        "extra_headers": None,
        "priority": None,
        "request_id": None,
        "cache_salt": None,
        "modality": ("text", ["text"]),
        "late_chunking": (False,),
        "return_multivector": (False,),
        "add_special_tokens": (True,),
        "endianness": ("native", "little"),
        "embed_dtype": ("float32",),
    }

    input: SomeInputs
    model: ServedName = Field(
        "",
        description="name of a served model, GET /v1/models lists them; may be left out where there is one",
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian 32-bit floats; quantised vectors are numbers always"
    )
    dimensions: Dimensions | None = Field(
        None, description="cut the vectors to this width and scale them back to length 1; default: full width"
    )
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
    task: StrictStr | None = Field(
        None,
        description="as Jina has it: retrieval.query and retrieval.passage are input types, others use the "
        "instruction of that name, if the model has it; RETRIEVAL_QUERY of Google means the same",
    )
    truncate: Truncate = "END"
    max_tokens: Count | None = Field(
        None, description="limit on each input, its instruction apart, below the model's own"
    )
    normalize: StrictBool = Field(
        True, description="false: vectors cut by `dimensions` stay shorter than length 1"
    )
    embedding_type: EmbeddingType = Field("float", description="number format of the vectors")
    embedding_types: Formats | None = Field(
        None, description="several formats at once, in each item's field `embeddings`"
    )

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """Fields of vLLM, Jina, Voyage and Google."""
        truncation_of(values)
        if isinstance(side := values.get("input_type"), str):
            values["input_type"] = _side(side)
        kind = values.get("embedding_type")
        if kind == "base64":
            values["encoding_format"] = values.pop("embedding_type")
        elif isinstance(kind, list):
            values["embedding_types"] = values.pop("embedding_type")
        if "messages" in values:
            values.setdefault("input", _texts_of_messages(values.pop("messages")))
        items = values.get("input")
        if isinstance(items, list) and items and isinstance(items[0], dict):
            values["input"] = [_text_of_part(item, "input") for item in items]

    def inputs(self, input_type: str | None = None) -> Inputs:
        """The inputs and the instruction fields."""
        texts, token_ids = split_inputs(self.input)
        if self.task is not None:
            input_type = input_type or _side(self.task)
        return Inputs(
            texts=texts,
            token_ids=token_ids,
            instruction=self.instruction,
            prompt_name=self.prompt_name,
            input_type=self.input_type or input_type,
            max_tokens=self.max_tokens,
        )

    def formats(self) -> list[EmbeddingType]:
        """Number formats of the vectors, the one of the field `embedding` first."""
        return self.embedding_types or [self.embedding_type]


def _side(name: str) -> str:
    """`query` for Jina's retrieval.query, Cohere's search_query and Google's RETRIEVAL_QUERY."""
    side = _SIDE.fullmatch(name)
    return side[1].lower() if side else name


def _texts_of_messages(conversations: Any) -> list[str]:
    """Texts of vLLM's chat messages, which stand in for `input`: one conversation of one message a text."""
    if isinstance(conversations, list) and conversations and isinstance(conversations[0], dict):
        conversations = [conversations]
    texts = []
    for conversation in conversations if isinstance(conversations, list) else [None]:
        if (
            not isinstance(conversation, list)
            or len(conversation) != 1
            or not isinstance(conversation[0], dict)
        ):
            raise refused("messages: send one message a text, or texts in the field input", "messages")
        content = conversation[0].get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts.append("".join(_text_of_part(part, "messages") for part in parts))
    return texts


def _text_of_part(part: Any, field: str) -> str:
    if not isinstance(part, dict) or part.keys() - {"type", "text"} or not isinstance(part.get("text"), str):
        raise refused(f"{field}: this endpoint embeds texts; send objects with the one field text", field)
    return part["text"]


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
    router = dialect_router("OpenAI")

    @router.post("/v1/embeddings", response_model=EmbeddingResponse)
    @router.post("/embeddings", include_in_schema=False)
    @router.post("/openai/v1/embeddings", include_in_schema=False)
    async def embeddings(
        request: EmbeddingRequest, record: Record, priority: WorkPriority = "online"
    ) -> Response:
        """Embed one or several inputs."""
        return await embed(models, request, record, priority)

    @router.post("/openai/deployments/{name}/embeddings", include_in_schema=False)
    async def deployment(
        name: str, request: EmbeddingRequest, record: Record, priority: WorkPriority = "online"
    ) -> Response:
        """The same with the model in the path, as Azure has it."""
        return await embeddings(request.model_copy(update={"model": name}), record, priority)

    @router.get("/v1/models", name="models")
    async def list_models() -> ModelList:
        """The served models."""
        return ModelList(data=await models.cards())

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """A served model by its name or an alias."""
        return await models.card(name)

    return router


async def embed(
    models: ModelRouter, request: EmbeddingRequest, record: RequestRecord, priority: Priority
) -> Response:
    """Answer a request; ApiError where it is refused."""
    name, input_type = models.with_side(request.model)
    asked = EncodeRequest(
        [request.inputs(input_type)],
        dimensions=request.dimensions,
        truncate=request.truncate,
        normalize=request.normalize,
        priority=priority,
        wants_ranges=request.formats() != ["float"],
    )
    return await _response(request, name, await models.encode(name, asked, record))


async def _response(request: EmbeddingRequest, name: str, answer: Embeddings) -> Response:
    formats = request.formats()
    encoded = {kind: await rows(answer, kind, request.encoding_format) for kind in formats}
    items = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(encoded[formats[0]])
    ]
    if len(formats) > 1:
        for index, item in enumerate(items):
            item["embeddings"] = {kind: vectors[index] for kind, vectors in encoded.items()}
    body = {"object": "list", "data": items, "model": name, "usage": usage(answer)}
    return json_response(body, answer, request)

"""Bodies of requests and responses: OpenAI's `/v1/embeddings` plus the fields for instructions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(min_length=1)]
TokenId = Annotated[StrictInt, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """Body of POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    input: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)],
        Field(
            union_mode="left_to_right",
            description="one text, texts, one text's token ids, or several texts' ids",
        ),
    ]
    model: StrictStr = Field(description="name of the served model; GET /v1/models tells it")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 sends little-endian 32-bit floats"
    )
    dimensions: StrictInt | None = Field(
        None, ge=1, description="cut the vectors to this width and renormalise; default the full width"
    )
    user: StrictStr | None = Field(None, description="accepted for compatibility and not used")
    instruction: StrictStr | None = Field(
        None,
        description="what the texts are for; wins over prompt_name and input_type, and may be empty for none",
    )
    prompt_name: StrictStr | None = Field(
        None, description="name of an instruction that the model was trained with; GET /v1/models lists them"
    )
    input_type: Literal["query", "passage", "document"] | None = Field(
        None, description="query takes the model's query instruction; passage and document take none"
    )

    def texts(self) -> list[str]:
        """The inputs that are texts; empty when token ids were sent."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        return [text for text in inputs if isinstance(text, str)]

    def token_ids(self) -> list[list[int]]:
        """The inputs that are token ids; empty when texts were sent."""
        single = [token_id for token_id in self.input if isinstance(token_id, int)]
        return [single] if single else [ids for ids in self.input if isinstance(ids, list)]


class EmbeddingItem(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were computed, instruction and end token included, and how many inputs were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated: int


class EmbeddingResponse(BaseModel):
    """Body of a successful POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """One entry of GET /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayembed"
    digest: str
    dimensions: int
    max_length: int
    instructions: dict[str, str]


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Body of every failure."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 413, 429, 500, 503)
}

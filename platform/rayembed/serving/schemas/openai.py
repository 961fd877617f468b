"""OpenAI's `/v1/embeddings` and `/v1/models`, plus optional fields of our own."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from rayembed.serving.messages import Inputs
from rayembed.serving.schemas.fields import AnyText, Count, EmbeddingType, Text, TokenIds, Truncate


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
    model: StrictStr = Field(description="name of a served model; GET /v1/models tells them")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 sends little-endian 32-bit floats, or the bytes of a quantised vector"
    )
    dimensions: Count | None = Field(
        None, description="cut the vectors to this width and renormalise; default the full width"
    )
    user: StrictStr | None = Field(None, description="accepted for compatibility and not used")
    instruction: AnyText | None = Field(
        None,
        description="what the texts are for; wins over prompt_name and input_type, and may be empty for none",
    )
    prompt_name: AnyText | None = Field(
        None, description="name of an instruction that the model was trained with; GET /v1/models lists them"
    )
    input_type: Literal["query", "passage", "document"] | None = Field(
        None, description="query takes the model's query instruction; passage and document take none"
    )
    truncate: Truncate = "END"
    normalize: StrictBool = Field(
        True, description="false leaves vectors that `dimensions` cut at less than unit length"
    )
    embedding_type: EmbeddingType = Field("float", description="number format of the vectors")
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1)] | None = Field(
        None, description="several formats at once, in the field `embeddings` of each item"
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


class Usage(BaseModel):
    """Tokens of the inputs, instruction and end token included, and how many inputs were cut."""

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
    vocabulary: int
    instructions: dict[str, str]
    aliases: list[str] = []


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]

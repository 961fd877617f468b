"""Cohere's `/v2/embed`, and the reranking body that Cohere and Jina share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from rayembed.serving.schemas.fields import AnyText, Count, EmbeddingType, Text, Truncate
from rayembed.serving.schemas.openai import Usage

INPUT_TYPES = {"search_query": "query", "search_document": "document"}
"""Names for what the other interface calls query and document; the rest are instruction names."""


class CohereEmbedRequest(BaseModel):
    """Body of POST /v2/embed."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: StrictStr
    texts: Annotated[list[Text], Field(min_length=1)]
    input_type: Literal["search_query", "search_document", "classification", "clustering"] = Field(
        "search_document",
        description="classification and clustering take the instruction of that name where the model has it",
    )
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1)] = ["float"]
    output_dimension: Count | None = None
    truncate: Truncate = "END"


class CohereEmbedResponse(BaseModel):
    """Body of a successful POST /v2/embed."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[EmbeddingType, list[list[float]]]
    texts: list[str]
    meta: dict[str, Any]


class Document(BaseModel):
    """A document in the form of an object."""

    text: Text


class RerankRequest(BaseModel):
    """Body of POST /v1/rerank, /v2/rerank and /rerank."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: StrictStr
    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1)]
    top_n: Count | None = None
    return_documents: StrictBool = False
    instruction: AnyText | None = Field(
        None, description="of the query; default the model's query instruction"
    )
    prompt_name: AnyText | None = None
    truncate: Truncate = "END"

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(BaseModel):
    """One document and its cosine to the query."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankResponse(BaseModel):
    """Body of a successful rerank request, best document first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: dict[str, Any]

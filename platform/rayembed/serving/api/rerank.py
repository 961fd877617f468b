"""Documents in the order of their cosine to a query, for the clients of Cohere, Jina, Voyage, TEI and NIM."""

import uuid
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictStr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from rayembed.serving.api.cohere import meta
from rayembed.serving.api.dialect import (
    AnyText,
    Count,
    EmbeddingUsage,
    InputsNextToQuery,
    PromptName,
    Record,
    ServedName,
    Text,
    Truncate,
    WorkPriority,
    dialect_router,
    json_response,
    similarities,
    truncation_of,
    usage,
)
from rayembed.serving.api.tei import TeiOptions
from rayembed.serving.body import Body, refused, whole
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import Embeddings, EncodeRequest, Inputs, Truncation
from rayembed.serving.router import ModelRouter


class RerankDocument(BaseModel):
    """A document in the form of an object."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra=lambda schema: schema.update(required=["text"])
    )

    text: Annotated[AnyText | None, WithJsonSchema({"type": "string", "minLength": 1})] = None

    def joined(self, fields: list[str]) -> str:
        """The named fields one below the other, or the text; empty where the document has none of them."""
        values = self.model_dump()
        named = "\n".join(str(values[field]) for field in fields if values.get(field) is not None)
        return named or self.text or ""


class RerankRequest(Body):
    """Body of POST /v1/rerank, /v2/rerank and /rerank."""

    renamed: ClassVar = {"max_tokens_per_doc": "max_tokens", "truncate_prompt_tokens": "max_tokens"}
    ignored: ClassVar = {"user": None, "priority": None, "max_chunks_per_doc": None, "request_id": None}

    model: ServedName = ""
    query: Text
    documents: Annotated[
        list[Annotated[Text | RerankDocument, Field(union_mode="left_to_right")]],
        Field(fail_fast=True, min_length=1),
        InputsNextToQuery,
    ]
    top_n: Count | None = None
    top_k: Count | None = Field(None, description="Voyage's top_n")
    truncation: StrictBool | None = Field(None, description="Voyage's truncate")
    return_documents: StrictBool = False
    rank_fields: Annotated[list[StrictStr], Field(fail_fast=True, max_length=32)] = Field(
        [], description="fields of documents that are objects; default: text"
    )
    max_tokens: Count | None = Field(None, description="limit on each document below the model's own")
    instruction: AnyText | None = Field(
        None, description="instruction of the query; default: the model's query instruction"
    )
    prompt_name: PromptName | None = None
    truncate: Truncate = "END"

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """Fields of vLLM, Jina and Voyage."""
        truncation = values.get("truncation")
        truncation_of(values)
        if truncation is not None:
            values["truncation"] = truncation

    @property
    def is_voyages(self) -> bool:
        """Whether it has a field that only Voyage's clients send; they expect `data` in the answer."""
        return self.top_k is not None or self.truncation is not None

    @model_validator(mode="after")
    def _fields_are_texts(self) -> Self:
        for position, text in enumerate(self.texts()):
            if not text:
                wanted = " or ".join(self.rank_fields or ["text"])
                message = (
                    f"documents[{position}]: it has no {wanted}; name the fields of its text in rank_fields"
                )
                raise refused(message, "documents")
            whole(text)
        return self

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [each if isinstance(each, str) else each.joined(self.rank_fields) for each in self.documents]


class TeiRerankRequest(TeiOptions):
    """Body of POST /rerank as text-embeddings-inference has it; the answer is a bare list."""

    query: Text
    texts: Annotated[list[Text], Field(fail_fast=True, min_length=1), InputsNextToQuery]
    raw_scores: StrictBool = Field(False, description="cosines either way")
    return_text: StrictBool = False
    model: ServedName = ""


class RankedText(BaseModel):
    """A text of NIM's dialect."""

    text: Text


class RankingRequest(Body):
    """Body of POST /v1/ranking, as NIM has it."""

    model: ServedName = ""
    query: RankedText
    passages: Annotated[list[RankedText], Field(fail_fast=True, min_length=1), InputsNextToQuery]
    truncate: Truncate = "END"


class RerankResult(BaseModel):
    """One document and its cosine to the query."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class VoyageResult(BaseModel):
    """The same in Voyage's dialect."""

    index: int
    relevance_score: float
    document: str | None = None


class RerankResponse(BaseModel):
    """Body of a successful rerank request, best document first; `data` where the request is Voyage's."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    data: list[VoyageResult] | None = None
    usage: EmbeddingUsage
    meta: dict[str, Any]


class TeiRank(BaseModel):
    """One text and its cosine to the query."""

    index: int
    score: float
    text: str | None = None


class Ranking(BaseModel):
    """One passage and its cosine to the query."""

    index: int
    logit: float


class RankingResponse(BaseModel):
    """Body of a successful POST /v1/ranking, best passage first."""

    rankings: list[Ranking]
    usage: EmbeddingUsage


def _dialect_of(body: Any) -> str:
    """Which of the two bodies of /rerank it is."""
    tei = isinstance(body, TeiRerankRequest) or (isinstance(body, dict) and "texts" in body)
    return "tei" if tei else "cohere"


EitherRerank = Annotated[
    Annotated[RerankRequest, Tag("cohere")] | Annotated[TeiRerankRequest, Tag("tei")],
    Discriminator(_dialect_of),
]


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
    """Routes of all rerankers."""
    router = dialect_router("Reranking")

    async def scores(
        query: Inputs,
        documents: Inputs,
        truncate: Truncation,
        model: str,
        record: Record,
        priority: WorkPriority,
    ) -> tuple[Embeddings, list[tuple[int, float]]]:
        """The answer, and index and cosine of each document, best first."""
        asked = EncodeRequest([query, documents], truncate=truncate, priority=priority)
        answer = await models.encode(model, asked, record)
        cosines = similarities(answer)
        order = sorted(range(len(cosines)), key=lambda index: -cosines[index])
        return answer, [(index, cosines[index]) for index in order]

    @router.post("/v1/rerank", response_model=RerankResponse)
    @router.post("/v2/rerank", response_model=RerankResponse, include_in_schema=False)
    async def rerank(request: RerankRequest, record: Record, priority: WorkPriority = "online") -> Response:
        """Order documents by their cosine to a query."""
        named = request.instruction is not None or request.prompt_name is not None
        query = Inputs(
            [request.query],
            instruction=request.instruction,
            prompt_name=request.prompt_name,
            input_type=None if named else "query",
        )
        texts = request.texts()
        documents = Inputs(
            texts,
            prompt_name=request.prompt_name if request.instruction is None else None,
            side="document",
            input_type="document",
            max_tokens=request.max_tokens,
        )
        answer, ranks = await scores(query, documents, request.truncate, request.model, record, priority)
        ranks = ranks[: request.top_n or request.top_k]

        def results(document: Callable[[str], Any]) -> list[dict[str, Any]]:
            return [
                {"index": index, "relevance_score": score}
                | ({"document": document(texts[index])} if request.return_documents else {})
                for index, score in ranks
            ]

        body = {
            "id": str(uuid.uuid4()),
            "object": "list",
            "model": request.model or config.served_name,
            "results": results(lambda text: {"text": text}),
            "usage": usage(answer),
            "meta": meta(answer),
        }
        if request.is_voyages:
            body["data"] = results(lambda text: text)
        return json_response(body, answer, request)

    @router.post("/rerank", response_model=RerankResponse | list[TeiRank])
    async def either(request: EitherRerank, record: Record, priority: WorkPriority = "online") -> Response:
        """The same, for the bodies of Cohere and of text-embeddings-inference."""
        if isinstance(request, RerankRequest):
            return await rerank(request, record, priority)
        prompt = request.prompt_name
        query = Inputs([request.query], prompt_name=prompt, input_type=None if prompt else "query")
        documents = Inputs(request.texts, prompt_name=prompt, side="document", input_type="document")
        name = request.model or config.served_name
        answer, ranks = await scores(query, documents, request.truncation(), name, record, priority)
        ranked = [
            {"index": index, "score": score} | ({"text": request.texts[index]} if request.return_text else {})
            for index, score in ranks
        ]
        return json_response(ranked, answer, request)

    @router.post("/v1/ranking", response_model=RankingResponse)
    async def ranking(request: RankingRequest, record: Record, priority: WorkPriority = "online") -> Response:
        """The same as NIM has it."""
        query = Inputs([request.query.text], input_type="query")
        documents = Inputs([each.text for each in request.passages], input_type="document")
        answer, ranks = await scores(query, documents, request.truncate, request.model, record, priority)
        rankings = [{"index": index, "logit": score} for index, score in ranks]
        return json_response({"rankings": rankings, "usage": usage(answer)}, answer, request)

    return router

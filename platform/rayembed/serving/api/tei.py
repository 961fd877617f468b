"""The interface of text-embeddings-inference: /embed, /similarity, /tokenize, /info.

It serves one model and names none; the optional field `model` chooses another one here.
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

import rayembed
from rayembed.serving.api.dialect import (
    ERROR_RESPONSES,
    Dimensions,
    InputsNextToQuery,
    PromptName,
    Record,
    ServedName,
    Text,
    TextOrTexts,
    Trace,
    WorkPriority,
    json_response,
    similarities,
)
from rayembed.serving.config import ServeConfig
from rayembed.serving.messages import EncodeRequest, Inputs, TokenizeRequest, Truncation
from rayembed.serving.router import ModelRouter


class TeiOptions(BaseModel):
    """What happens to long inputs, and their instruction."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    truncate: StrictBool = Field(True, description="cut long inputs; false: refuse them")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: PromptName | None = None

    def truncation(self) -> Truncation:
        """The rule for long inputs."""
        if not self.truncate:
            return "NONE"
        return "START" if self.truncation_direction.lower() == "left" else "END"


class TeiEmbedRequest(TeiOptions):
    """Body of POST /embed."""

    inputs: TextOrTexts
    normalize: StrictBool = True
    dimensions: Dimensions | None = None
    model: ServedName | None = None


class TeiSentences(BaseModel):
    """One text and those it is compared with."""

    model_config = ConfigDict(extra="forbid")

    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1), InputsNextToQuery]


class TeiSimilarityRequest(BaseModel):
    """Body of POST /similarity; the answer is one cosine a sentence."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    inputs: TeiSentences
    parameters: TeiOptions = Field(default_factory=TeiOptions)
    model: ServedName | None = None


class TeiTokenizeRequest(BaseModel):
    """Body of POST /tokenize."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    inputs: TextOrTexts
    add_special_tokens: StrictBool = True
    prompt_name: PromptName | None = None
    model: ServedName | None = None


class TeiToken(BaseModel):
    """One token of a text."""

    id: int
    text: str
    special: bool


class TeiModelType(BaseModel):
    """What kind of model it is."""

    embedding: dict[str, str]


class TeiInfo(BaseModel):
    """Body of GET /info."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: TeiModelType
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
    """Routes that the clients of text-embeddings-inference use."""
    router = APIRouter(tags=["text-embeddings-inference"], responses=ERROR_RESPONSES)

    @router.post("/embed", response_model=list[list[float]])
    async def embed(
        request: TeiEmbedRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Embed one or several texts; the answer is the bare vectors."""
        asked = EncodeRequest(
            [Inputs(_as_list(request.inputs), prompt_name=request.prompt_name)],
            dimensions=request.dimensions,
            truncate=request.truncation(),
            normalize=request.normalize,
            priority=priority,
            trace=trace,
        )
        answer = await models.encode(request.model, asked, record)
        return json_response(list(answer.vectors), answer)

    @router.post("/similarity", response_model=list[float])
    async def similarity(
        request: TeiSimilarityRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Cosine of one sentence with each of the others."""
        texts = [request.inputs.source_sentence, *request.inputs.sentences]
        asked = EncodeRequest(
            [Inputs(texts, prompt_name=request.parameters.prompt_name)],
            truncate=request.parameters.truncation(),
            priority=priority,
            trace=trace,
        )
        answer = await models.encode(request.model, asked, record)
        return json_response(similarities(answer), answer)

    @router.post("/tokenize")
    async def tokenize(request: TeiTokenizeRequest) -> list[list[TeiToken]]:
        """The tokens of each text."""
        asked = TokenizeRequest(_as_list(request.inputs), request.prompt_name, request.add_special_tokens)
        tokens = await models.tokenize(request.model, asked)
        return [[TeiToken(**vars(token)) for token in text] for text in tokens]

    @router.get("/info")
    async def info() -> TeiInfo:
        """The default model and the limits of a request."""
        card = await models.card(None)
        return TeiInfo(
            model_id=card.id,
            model_sha=card.digest,
            model_dtype=config.precision,
            model_type=TeiModelType(embedding={}),
            max_input_length=card.max_length,
            max_batch_tokens=config.tokens_per_pass,
            max_client_batch_size=config.max_inputs,
            auto_truncate=True,
            version=rayembed.__version__,
        )

    return router


def _as_list(inputs: str | list[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs

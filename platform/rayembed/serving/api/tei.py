"""The interface of text-embeddings-inference: /embed, /similarity, /tokenize, /decode, /info and cloud paths.

It serves one model and names none; the optional field `model` chooses another one here.
"""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictBool

import rayembed
from rayembed.serving.api.dialect import (
    Dimensions,
    InputsNextToQuery,
    PromptName,
    Record,
    ServedName,
    SomeInputs,
    Text,
    Texts,
    TokenIds,
    WorkPriority,
    dialect_router,
    json_response,
    rows,
    similarities,
    split_inputs,
)
from rayembed.serving.body import Body, refused
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.messages import DecodeRequest, EncodeRequest, Inputs, TokenizeRequest, Truncation
from rayembed.serving.router import ModelRouter

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_POOLINGS = {"eos": "last_token"}


class TeiOptions(Body):
    """What happens to long inputs, and their instruction."""

    ignored: ClassVar = {"options": None, "model_id": None}

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

    inputs: SomeInputs
    normalize: StrictBool = True
    dimensions: Dimensions | None = None
    model: ServedName = ""

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """Hugging Face's clients may put options into `parameters`."""
        parameters = values.pop("parameters", None)
        if isinstance(parameters, dict):
            values |= {name: value for name, value in parameters.items() if value is not None}

    def encode_request(self, priority: WorkPriority) -> EncodeRequest:
        """What a replica is asked."""
        texts, token_ids = split_inputs(self.inputs)
        return EncodeRequest(
            [Inputs(texts, token_ids, prompt_name=self.prompt_name)],
            dimensions=self.dimensions,
            truncate=self.truncation(),
            normalize=self.normalize,
            priority=priority,
        )


class TeiSentences(Body):
    """One text and those it is compared with."""

    source_sentence: Text
    sentences: Annotated[list[Text], Field(fail_fast=True, min_length=1), InputsNextToQuery]


class TeiSimilarityRequest(Body):
    """Body of POST /similarity; the answer is one cosine a sentence."""

    ignored: ClassVar = {"options": None}

    inputs: TeiSentences
    parameters: TeiOptions = Field(default_factory=TeiOptions)
    model: ServedName = ""


class TeiTokenizeRequest(Body):
    """Body of POST /tokenize."""

    inputs: Annotated[Text | Texts, Field(union_mode="left_to_right")]
    add_special_tokens: StrictBool = True
    prompt_name: PromptName | None = None
    model: ServedName = ""


class TeiToken(BaseModel):
    """One token of a text, and where it stands there; null for a token that the text does not contain."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TeiDecodeRequest(Body):
    """Body of POST /decode."""

    ids: Annotated[
        TokenIds | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1)],
        Field(union_mode="left_to_right"),
    ]
    skip_special_tokens: StrictBool = True
    model: ServedName = ""


class VertexRequest(Body):
    """Body of POST /vertex: requests of /embed with the same options."""

    instances: Annotated[list[TeiEmbedRequest], Field(fail_fast=True, min_length=1, max_length=256)]

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """Each instance names its kind."""
        instances = values.get("instances")
        for each in instances if isinstance(instances, list) else []:
            if isinstance(each, dict) and each.pop("type", "embed") != "embed":
                raise refused("instances: this endpoint has the type embed only", "instances")


class TeiModelType(BaseModel):
    """What kind of model it is."""

    embedding: dict[str, str | None]


class TeiInfo(BaseModel):
    """Body of GET /info."""

    model_id: str
    model_sha: str | None
    served_model_name: str
    model_dtype: str | None
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str = rayembed.__version__
    sha: str | None = None
    docker_label: str | None = None


def routes(models: ModelRouter, config: ServeConfig) -> APIRouter:
    """Routes that the clients of text-embeddings-inference use."""
    router = dialect_router("text-embeddings-inference")

    @router.post("/embed", response_model=list[list[float]])
    @router.post("/", include_in_schema=False)
    @router.post("/invocations", include_in_schema=False)  # SageMaker
    async def embed(request: TeiEmbedRequest, record: Record, priority: WorkPriority = "online") -> Response:
        """Embed one or several texts; the answer is the bare vectors."""
        asked = request.encode_request(priority)
        answer = await models.encode(request.model or config.served_name, asked, record)
        return json_response(await rows(answer), answer, request)

    @router.post("/vertex", include_in_schema=False)
    async def vertex(request: VertexRequest, record: Record, priority: WorkPriority = "online") -> Response:
        """Several requests of /embed in one."""
        [first, *others] = [each.encode_request(priority) for each in request.instances]
        groups = [*first.groups, *(each.groups[0] for each in others)]
        names = {each.model or config.served_name for each in request.instances}
        alike = all(
            (each.dimensions, each.truncate, each.normalize)
            == (first.dimensions, first.truncate, first.normalize)
            for each in others
        )
        if len(names) > 1 or not alike:
            raise ApiError(Problem(400, "instances: give all the same model and options", "instances"))
        asked = EncodeRequest(groups, first.dimensions, first.truncate, first.normalize, priority=priority)
        answer = await models.encode(names.pop(), asked, record)
        written = await rows(answer)
        predictions = []
        for group in groups:
            predictions.append(written[: len(group)])
            written = written[len(group) :]
        return json_response({"predictions": predictions}, answer, request)

    @router.post("/embed_all", include_in_schema=False)
    @router.post("/embed_sparse", include_in_schema=False)
    @router.post("/predict", include_in_schema=False)
    async def other_kinds() -> Response:
        """What other kinds of models answer."""
        message = "this endpoint computes one vector a text: POST /embed; order documents with POST /rerank"
        raise ApiError(Problem(404, message, code="not_an_embedding_path"))

    @router.post("/similarity", response_model=list[float])
    async def similarity(
        request: TeiSimilarityRequest, record: Record, priority: WorkPriority = "online"
    ) -> Response:
        """Cosine of one sentence with each of the others."""
        texts = [request.inputs.source_sentence, *request.inputs.sentences]
        asked = EncodeRequest(
            [Inputs(texts, prompt_name=request.parameters.prompt_name)],
            truncate=request.parameters.truncation(),
            priority=priority,
        )
        answer = await models.encode(request.model or config.served_name, asked, record)
        return json_response(similarities(answer), answer, request)

    @router.post("/tokenize", response_model=list[list[TeiToken]])
    async def tokenize(request: TeiTokenizeRequest, record: Record) -> Response:
        """The tokens of each text, as the model would compute them."""
        asked = TokenizeRequest(
            split_inputs(request.inputs)[0], request.prompt_name, request.add_special_tokens
        )
        content = await models.tokenize(request.model or config.served_name, asked, record)
        return Response(content, media_type="application/json")

    @router.post("/decode", response_model=list[str])
    async def decode(request: TeiDecodeRequest, record: Record) -> list[str]:
        """The texts of token ids."""
        asked = DecodeRequest(split_inputs(request.ids)[1], request.skip_special_tokens)
        return await models.decode(request.model or config.served_name, asked, record)

    @router.get("/info")
    async def info() -> TeiInfo:
        """The default model and the limits of a request; null is unknown, of a model that has never run."""
        card = await models.card(config.served_name)
        return TeiInfo(
            model_id=card.id,
            served_model_name=card.id,
            model_sha=card.digest or None,
            model_dtype=_DTYPES.get(card.precision),
            model_type=TeiModelType(embedding={"pooling": _POOLINGS.get(card.pooling, card.pooling) or None}),
            max_concurrent_requests=config.max_queued_tokens,
            max_input_length=card.max_length or None,
            max_batch_tokens=config.tokens_per_pass,
            max_client_batch_size=config.max_inputs,
        )

    return router

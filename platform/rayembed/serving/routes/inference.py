"""The paths of text-embeddings-inference: /embed, /similarity, /tokenize, /info."""

from fastapi import APIRouter
from fastapi.responses import Response

import rayembed
from rayembed.serving.answers import rows_response, similarities
from rayembed.serving.config import ServeConfig
from rayembed.serving.gateway import Gateway
from rayembed.serving.messages import EncodeRequest, Inputs, TokenizeRequest
from rayembed.serving.routes.parameters import Record, Trace, WorkPriority
from rayembed.serving.schemas.errors import ERROR_RESPONSES
from rayembed.serving.schemas.inference import (
    EmbedRequest,
    Info,
    ModelType,
    ShownToken,
    ShowTokensRequest,
    SimilarityRequest,
)


def inference_routes(gateway: Gateway, config: ServeConfig) -> APIRouter:
    """Routes that the clients of text-embeddings-inference use."""
    router = APIRouter(tags=["text-embeddings-inference"], responses=ERROR_RESPONSES)

    @router.post("/embed", response_model=list[list[float]])
    async def embed(
        request: EmbedRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Embed one or several texts; the answer is the bare vectors."""
        asked = EncodeRequest(
            [Inputs(request.texts(), prompt_name=request.prompt_name)],
            dimensions=request.dimensions,
            truncate=request.truncation(),
            normalize=request.normalize,
            priority=priority,
            trace=trace,
        )
        answer = await gateway.encode(request.model, asked, record)
        return rows_response(list(answer.vectors), answer)

    @router.post("/similarity", response_model=list[float])
    async def similarity(
        request: SimilarityRequest, record: Record, trace: Trace, priority: WorkPriority = "online"
    ) -> Response:
        """Cosine of one sentence with each of the others."""
        texts = [request.inputs.source_sentence, *request.inputs.sentences]
        asked = EncodeRequest(
            [Inputs(texts, prompt_name=request.parameters.prompt_name)],
            truncate=request.parameters.truncation(),
            priority=priority,
            trace=trace,
        )
        answer = await gateway.encode(request.model, asked, record)
        return rows_response(similarities(answer), answer)

    @router.post("/tokenize")
    async def tokenize(request: ShowTokensRequest) -> list[list[ShownToken]]:
        """The tokens of each text."""
        asked = TokenizeRequest(request.texts(), request.prompt_name, request.add_special_tokens)
        tokens = await gateway.tokenize(request.model, asked)
        return [[ShownToken(**vars(token)) for token in text] for text in tokens]

    @router.get("/info")
    async def info() -> Info:
        """The default model and the limits of a request."""
        card = await gateway.card(None)
        return Info(
            model_id=card.id,
            model_sha=card.digest,
            model_dtype=config.precision,
            model_type=ModelType(embedding={}),
            max_input_length=card.max_length,
            max_batch_tokens=config.token_budget,
            max_client_batch_size=config.max_inputs,
            auto_truncate=True,
            version=rayembed.__version__,
        )

    return router

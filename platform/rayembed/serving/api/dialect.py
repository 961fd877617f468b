"""What the dialects share: fields of a request, what a route reads next to its body, and answers."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictStr

from rayembed.engine.vector_formats import quantise
from rayembed.serving.api.openapi import ServedModels, WhenServed
from rayembed.serving.messages import Embeddings, Priority, Truncation
from rayembed.serving.middleware import RequestRecord

MODEL_DIGEST_HEADER = "X-Rayembed-Model-Digest"
TRUNCATED_HEADER = "X-Rayembed-Truncated"
PRIORITY_HEADER = "X-Rayembed-Priority"


def _encodable(text: str) -> str:
    """A lone surrogate is valid JSON and no valid text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has half of a surrogate pair, which is no character") from error
    return text


def _number(value: Any) -> Any:
    """JSON does not tell 1.0 from 1, but it tells both from "1" and true."""
    if isinstance(value, (bool, str)):
        raise ValueError("a number is needed")
    return value


def _known_instructions(served: ServedModels) -> dict[str, Any]:
    names = sorted({name for card in served.cards for name in card.instructions})
    return {"enum": names} if served.cards else {}


def _known_token_ids(served: ServedModels) -> dict[str, Any]:
    return {"maximum": max(card.vocabulary for card in served.cards) - 1} if served.cards else {}


def _known_widths(served: ServedModels) -> dict[str, Any]:
    return {"maximum": max(card.dimensions for card in served.cards)} if served.cards else {}


AnyText = Annotated[StrictStr, AfterValidator(_encodable)]
Text = Annotated[AnyText, Field(min_length=1)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
AllInputs = WhenServed(lambda served: {"maxItems": served.max_inputs})
"""Marks a list that holds all inputs of a request."""
InputsNextToQuery = WhenServed(lambda served: {"maxItems": served.max_inputs - 1})
"""Marks a list of inputs where the request has one more, the query."""
Texts = Annotated[list[Text], Field(min_length=1), AllInputs]
TextOrTexts = Annotated[Text | Texts, Field(union_mode="left_to_right")]
TokenId = Annotated[int, Field(ge=0), BeforeValidator(_number), WhenServed(_known_token_ids)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
ServedName = Annotated[StrictStr, WhenServed(lambda served: {"enum": served.names})]
PromptName = Annotated[AnyText, WhenServed(_known_instructions)]
Dimensions = Annotated[Count, WhenServed(_known_widths)]
Truncate = Annotated[
    Truncation,
    Field(description="what to do with an input above the maximum length: refuse it or cut it"),
]
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]


def _record(request: Request) -> RequestRecord:
    return request.state.record


def _trace(request: Request) -> Mapping[str, str]:
    return {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}


Record = Annotated[RequestRecord, Depends(_record)]
Trace = Annotated[Mapping[str, str], Depends(_trace)]
WorkPriority = Annotated[
    Priority,
    Header(alias=PRIORITY_HEADER, description="bulk work runs when online work leaves room"),
]


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
    status: {"model": ErrorResponse} for status in (400, 401, 404, 405, 413, 429, 500, 503)
}


class EmbeddingUsage(BaseModel):
    """Tokens of the inputs, instruction and end token included, and how many inputs were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated: int


def usage(answer: Embeddings) -> dict[str, int]:
    """Fields of `EmbeddingUsage`."""
    return {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens, "truncated": answer.truncated}


def similarities(answer: Embeddings) -> list[float]:
    """Cosine of the first vector with each of the others."""
    query, *documents = answer.vectors
    return (np.stack(documents) @ query).clip(-1, 1).tolist()


def as_type(vectors: np.ndarray, kind: EmbeddingType) -> np.ndarray:
    """Vectors (N, D) in a number format; bits fill the last byte of a vector with zeros."""
    if kind == "float":
        return vectors.astype("<f4", copy=False)
    missing = -vectors.shape[1] % 8 if kind in ("binary", "ubinary") else 0
    return quantise(np.pad(vectors, ((0, 0), (0, missing))), kind)


def rows(vectors: np.ndarray, encoding_format: str) -> list[Any]:
    """Each vector as a list of numbers, or as base64 of its bytes."""
    if encoding_format == "base64":
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    return list(np.ascontiguousarray(vectors))


def json_response(body: Any, answer: Embeddings) -> Response:
    """A response with `body`, which may contain arrays, and the headers of every embedding answer."""
    headers = {MODEL_DIGEST_HEADER: answer.digest, TRUNCATED_HEADER: str(answer.truncated)}
    # Shortest text of a 32-bit float: half the bytes that Python's own writer takes for its 64-bit form.
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json", headers=headers)

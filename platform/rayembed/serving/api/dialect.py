"""What the dialects share: fields of a request, what a route reads next to its body, and answers.

Some rules depend on the served models: which names, widths, token ids and instructions there are is known
when a replica has described its model. From then on the OpenAPI document says so, and every request that
agrees with it is accepted. A field declares such a rule where it is defined:
`Annotated[int, WhenServed(lambda served: {"maximum": served.dimensions})]`.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import Response
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    StrictStr,
)
from pydantic_core import CoreSchema

from rayembed.engine.vector_formats import quantise
from rayembed.serving.body import Body, JsonRoute, whole
from rayembed.serving.messages import Embeddings, ModelCard, Priority, Truncation
from rayembed.serving.middleware import RequestRecord
from rayembed.serving.router import ModelRouter

MODEL_DIGEST_HEADER = "X-Rayembed-Model-Digest"
TRUNCATED_HEADER = "X-Rayembed-Truncated"
IGNORED_HEADER = "X-Rayembed-Ignored"
PRIORITY_HEADER = "X-Rayembed-Priority"
_NUMBERS_AT_ONCE = 2**17  # written without a break; 3 ms


@dataclass(frozen=True)
class ServedModels:
    """What is known when the document is written.

    Attributes:
        names: every name that a request may give.
        max_inputs: most inputs in one request.
        cards: descriptions that replicas have given so far.
    """

    names: Sequence[str]
    max_inputs: int
    cards: Sequence[ModelCard]


_served: ContextVar[ServedModels | None] = ContextVar("served", default=None)


class WhenServed:
    """Annotation of a field: keywords for its JSON schema, from the models that are served."""

    def __init__(self, rule: Callable[[ServedModels], dict[str, Any]]):
        self._rule = rule

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        served = _served.get()
        return handler(schema) | (self._rule(served) if served else {})


def describe_served_models(app: FastAPI, models: ModelRouter, max_inputs: int, with_keys: bool) -> None:
    """Make `app` answer /openapi.json with what the models that are known by then accept."""
    general = app.openapi
    written: dict[tuple[str, ...], dict[str, Any]] = {}

    def openapi() -> dict[str, Any]:
        cards = models.known_cards
        known = tuple(card.id for card in cards)
        if known not in written:  # takes 50 ms
            app.openapi_schema = None
            token = _served.set(ServedModels(models.names, max_inputs, cards))
            try:
                written[known] = general()
            finally:
                _served.reset(token)
            if with_keys:
                scheme = {"type": "http", "scheme": "bearer"}
                written[known].setdefault("components", {})["securitySchemes"] = {"key": scheme}
                written[known]["security"] = [{"key": []}]
        return written[known]

    app.openapi = openapi  # type: ignore[method-assign]


def _number(value: Any) -> Any:
    """JSON does not tell 1.0 from 1, but it tells both from "1" and true."""
    if isinstance(value, (bool, str)):
        raise ValueError("a number is needed")
    return value


def _whole_numbers(items: Any) -> Any:
    """The same for a list of token ids."""
    if isinstance(items, list) and float in set(map(type, items)):
        return [int(item) if isinstance(item, float) and item.is_integer() else item for item in items]
    return items


def _known_instructions(served: ServedModels) -> dict[str, Any]:
    names = sorted({name for card in served.cards for name in card.instructions})
    return {"enum": names} if served.cards else {}


def _known_token_ids(served: ServedModels) -> dict[str, Any]:
    known = [card.vocabulary for card in served.cards if card.vocabulary]
    return {"maximum": max(known) - 1} if known else {}


def _known_widths(served: ServedModels) -> dict[str, Any]:
    known = [card.dimensions for card in served.cards if card.dimensions]
    return {"maximum": max(known)} if known else {}


AnyText = Annotated[StrictStr, AfterValidator(whole)]
Text = Annotated[AnyText, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_number)]
AllInputs = WhenServed(lambda served: {"maxItems": served.max_inputs})
"""Marks a list that holds all inputs of a request."""
InputsNextToQuery = WhenServed(lambda served: {"maxItems": served.max_inputs - 1})
"""Marks a list of inputs where the request has one more, the query."""
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1), AllInputs]
# Hundreds of thousands of them pass through here, checked by no Python.
TokenId = Annotated[int, Field(ge=0, strict=True), WhenServed(_known_token_ids)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1), BeforeValidator(_whole_numbers)]
SomeInputs = Annotated[
    Text | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1), AllInputs],
    Field(
        union_mode="left_to_right",
        description="one text, texts, one text's token ids, or several texts' ids; ids need the setting "
        "token_inputs=own",
    ),
]
ServedName = Annotated[StrictStr, WhenServed(lambda served: {"enum": served.names})]
PromptName = Annotated[AnyText, WhenServed(_known_instructions)]
Dimensions = Annotated[Count, WhenServed(_known_widths)]
Truncate = Annotated[
    Truncation,
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    Field(description="what to do with an input above the maximum length: refuse it or cut it"),
]
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]


def split_inputs(items: Any) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    """The texts and the lists of token ids of a field of the type `SomeInputs`; one of the two is empty."""
    if isinstance(items, str):
        return [items], ()
    if isinstance(items[0], str):
        return items, ()
    return (), items if isinstance(items[0], list) else [items]


def truncation_of(values: dict[str, Any]) -> None:
    """Put `truncate` in place of what Voyage, Jina and vLLM call it; its limit of -1 is none."""
    if values.get("truncate_prompt_tokens") == -1:
        del values["truncate_prompt_tokens"]
    if isinstance(cut := values.pop("truncation", values.get("truncate")), bool):
        values["truncate"] = "END" if cut else "NONE"
    if side := values.pop("truncation_side", None):
        values.setdefault("truncate", "START" if side == "left" else "END")


async def _record(request: Request) -> RequestRecord:  # FastAPI calls what is no coroutine in a thread
    return request.state.record


Record = Annotated[RequestRecord, Depends(_record)]
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
    status: {"model": ErrorResponse} for status in (400, 401, 404, 405, 408, 413, 429, 500, 503)
}


def dialect_router(tag: str) -> APIRouter:
    """Where a dialect puts its routes: bodies are parsed within limits, failures are documented."""
    return APIRouter(tags=[tag], responses=ERROR_RESPONSES, route_class=JsonRoute)


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


async def rows(
    answer: Embeddings, kind: EmbeddingType = "float", encoding_format: str = "float"
) -> list[Any]:
    """Each vector (D,) of an answer in a number format, as JSON numbers or as base64 of 32-bit floats.

    Bits fill the last byte of a vector with zeros. Quantised vectors are numbers always: the clients of
    OpenAI ask for base64 by themselves and decode it as 32-bit floats.
    """
    vectors = answer.vectors
    if kind != "float":
        vectors = quantise(vectors, kind, answer.ranges, fills_bytes=True)
    vectors = np.ascontiguousarray(vectors)
    written: list[Any] = []
    at_once = max(_NUMBERS_AT_ONCE // vectors.shape[1], 1)
    for start in range(0, len(vectors), at_once):
        if start:
            await asyncio.sleep(0)
        for vector in vectors[start : start + at_once]:
            if kind == "float" and encoding_format == "base64":
                written.append(base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode())
            else:
                # Shortest text of a 32-bit float: half the bytes of Python's own, for its 64-bit form.
                written.append(orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)))
    return written


def json_response(body: Any, answer: Embeddings, request: Body) -> Response:
    """A response with the headers of every embedding answer; arrays belong through `rows`."""
    headers = {MODEL_DIGEST_HEADER: answer.digest, TRUNCATED_HEADER: str(answer.truncated)}
    if request.ignored_fields:
        headers[IGNORED_HEADER] = ", ".join(request.ignored_fields)
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json", headers=headers)

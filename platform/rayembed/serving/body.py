"""Bodies of requests: how much of one is taken in, how it is parsed, and how foreign fields are read.

Parsing and checking hold the event loop. On one core of a server 8 MiB of text take 20 ms, 262,144 numbers
45 ms and 65,536 lists 20 ms, which is why there is a limit to each.
"""

import asyncio
import codecs
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayembed.serving.errors import ApiError, Problem, overloaded

MOST_VALUES, MOST_LISTS = 2**18, 2**16  # in one body
_BODIES_AT_ONCE = 8  # of the largest size, in the memory of one front end
SLOWEST_S = 60
FILES_PATH = "/v1/files"
_SLICE = 2**16
_NAME_SHOWN = 40


class BodyLimitMiddleware:
    """Refuses what is too large, has too many values, or arrives too slowly, while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point; raises ApiError into the application's read of the body."""
        if scope["type"] != "http" or scope["path"].endswith(FILES_PATH):  # a file has limits of its own
            return await self._app(scope, receive, send)
        received = 0
        complete = False
        values = ValueCounter()
        deadline = time.monotonic() + SLOWEST_S

        async def limited() -> Message:
            nonlocal received, complete
            if complete:  # what follows is only the client leaving
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                reason = f"the body did not arrive within {SLOWEST_S} s"
                raise ApiError(Problem(408, reason, code="request_timeout")) from error
            chunk = message.get("body", b"")
            complete = not message.get("more_body")
            received += len(chunk)
            self._held += len(chunk)
            if received > self._max_bytes:
                raise ApiError(
                    Problem(
                        413,
                        f"the body is above {self._max_bytes} bytes; send fewer or shorter inputs in one "
                        "request",
                    )
                )
            if self._held > _BODIES_AT_ONCE * self._max_bytes:
                raise ApiError(overloaded(1))
            if not complete or received > _SLICE:
                for start in range(0, len(chunk), _SLICE):
                    values.feed(chunk[start : start + _SLICE])
                    await asyncio.sleep(0)
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held -= received


class ValueCounter:
    """Counts the values of a JSON text as its parts arrive, and refuses too many.

    What stands between quotes is left out, so commas of texts do not count: the parts
    `[1, "a, b` and `, \\\\" c", 2]` have three values.
    """

    def __init__(self) -> None:
        self._values = self._lists = 0
        self._in_text = self._escaped = False

    def feed(self, part: bytes) -> None:
        """Count the next part; raises ApiError above the limits."""
        part = part[1:] if self._escaped else part
        if b"\\" in part or self._escaped:
            part = part.replace(b"\\\\", b"")
            self._escaped = part.endswith(b"\\")
            part = part.replace(b'\\"', b"")
        pieces = part.split(b'"')
        outside = b"".join(pieces[int(self._in_text) :: 2])
        self._in_text ^= len(pieces) % 2 == 0
        lists = outside.count(b"[") + outside.count(b"{")
        self._lists += lists
        self._values += outside.count(b",") + outside.count(b":") + lists
        if self._values > MOST_VALUES or self._lists > MOST_LISTS:
            message = (
                f"the body has more than {MOST_VALUES} values or {MOST_LISTS} lists; send several requests"
            )
            raise ApiError(Problem(413, message))


class JsonRoute(APIRoute):
    """Parses bodies with orjson, which takes a third of the time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI once a route."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The parsed body; json.JSONDecodeError where it is not JSON."""
        body = (await self.body()).removeprefix(codecs.BOM_UTF8)
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            if "surrogate" in str(error) and len(body) <= _SLICE:
                with contextlib.suppress(UnicodeDecodeError):
                    return json.loads(body)  # `whole` names the text in which it is
            if "UTF-8" in str(error):
                message = "the body is not JSON in UTF-8; send it so, without a Content-Encoding such as gzip"
                raise ApiError(Problem(400, message, code="invalid_json")) from error
            raise
        if len(body) > _SLICE:
            await asyncio.sleep(0)  # others go first, then it is checked
        return parsed


def whole(text: str) -> str:
    """Refuses half of a surrogate pair, which is valid JSON and no valid text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("the text has half of a surrogate pair, which is no character") from error
    return text


def refused(message: str, field: str, code: str = "invalid_request") -> PydanticCustomError:
    """What a check of a body raises to end the request with that sentence."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": field, "code": code})


class Body(BaseModel):
    """A JSON object from a client: null is as good as absent, and fields of other services are known.

    A subclass lists the fields that other services have in the same request. Those of `renamed` mean a field
    here, and `translate` turns others into fields. Those of `ignored` change no vector, some only with the
    values listed; the response names them in a header. Any other field may be a misspelling and is refused.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    renamed: ClassVar[Mapping[str, str]] = {}
    ignored: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {}
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def translate(cls, values: dict[str, Any]) -> None:
        """Replace foreign fields of a body by those of this class."""

    @property
    def ignored_fields(self) -> list[str]:
        """Fields that were sent and make no difference."""
        return self._ignored

    @model_validator(mode="wrap")
    @classmethod
    def _with_known_fields(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        values = {name: value for name, value in values.items() if value is not None}
        cls.translate(values)
        kept: dict[str, Any] = {}
        ignored = []
        for name, value in values.items():
            own = cls.renamed.get(name, name)
            if own in cls.model_fields:
                if own in kept and kept[own] != value:
                    raise refused(f"{name} and {own} mean the same and differ; send one of them", name)
                kept[own] = value
            elif name in cls.ignored:
                accepted = cls.ignored[name]
                if accepted is not None and value not in accepted:
                    message = f"{name}: this endpoint has only {' or '.join(map(repr, accepted))}"
                    raise refused(message, name, "unsupported_value")
                ignored.append(name)
            else:
                raise _unknown(name, cls.model_fields)
        body = handler(kept)
        body._ignored = ignored
        return body


def _unknown(name: str, known: Mapping[str, Any]) -> PydanticCustomError:
    shown = name[:_NAME_SHOWN].encode("ascii", "replace").decode()
    near = get_close_matches(shown, known, 1)
    remedy = f"; did you mean {near[0]}?" if near else "; leave it out"
    return refused(f"this endpoint does not know the field {shown}{remedy}", shown, "unknown_field")

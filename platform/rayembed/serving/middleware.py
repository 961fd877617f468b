"""Around every route: request ids, metrics, the access log, authentication and the size of the body."""

import asyncio
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayembed.serving.authentication import Keyring
from rayembed.serving.errors import ApiError
from rayembed.serving.metrics import IngressMetrics

access_logger = logging.getLogger("rayembed.access")

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_DISCONNECTED = 499  # the client left; never sent
_OPEN_PATHS = ("/", "/docs", "/openapi.json")
_OPEN_FOLDERS = ("/health/", "/assets/", "/static-offline-docs/")


@dataclass
class RequestRecord:
    """What is known of one request, for metrics, logs and limits; never its inputs.

    Attributes:
        request_id: the client's or a new one; repeated in the response.
        client: name of the API key, empty without authentication.
        model: served model, empty where none was reached.
        inputs: number of inputs.
        tokens: tokens of the inputs.
        truncated: inputs that were cut.
        digest: digest of the weights that answered.
    """

    request_id: str
    client: str = ""
    model: str = ""
    inputs: int = 0
    tokens: int = 0
    truncated: int = 0
    digest: str = ""


class ObservationMiddleware:
    """Gives each request a record, and counts, times and logs it."""

    def __init__(self, app: ASGIApp, metrics: IngressMetrics, access_log: bool):
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord(_request_id(scope))
        scope.setdefault("state", {})["record"] = record
        status = _DISCONNECTED
        started = time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            status = 500  # written by the application's outermost handler
            raise
        finally:
            self._finish(scope, record, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.responses.labels(route, record.model, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if self._access_log:
            line = {"route": route, "status": status, "seconds": round(seconds, 4), **vars(record)}
            access_logger.info(json.dumps(line))


class AuthenticationMiddleware:
    """Lets a request through when its key is known and within its limits."""

    def __init__(self, app: ASGIApp, keyring: Keyring):
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or _is_open(scope):
            return await self._app(scope, receive, send)
        try:
            client = self._keyring.admit(Headers(scope=scope).get("authorization", ""))
        except ApiError as error:
            return await error.problem.response()(scope, receive, send)
        record: RequestRecord = scope["state"]["record"]
        record.client = client.name
        try:
            await self._app(scope, receive, send)
        finally:
            client.charge(record.tokens)


class BodyLimitMiddleware:
    """Refuses a body above `max_bytes` while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point; raises HTTPException 413 into the application's read of the body."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


class DropAbandonedMiddleware:
    """Cancels the work of a request whose client goes away, as Ray Serve's proxy does."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        received = asyncio.Event()

        async def noticed() -> Message:
            message = await receive()
            if not message.get("more_body"):
                received.set()
            return message

        async def client_gone() -> None:
            await received.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, noticed, send))
        watch = asyncio.create_task(client_gone())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            watch.cancel()


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _is_open(scope: Scope) -> bool:
    """Pages without data, and the probes of orchestrators."""
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)

"""Around every route: request ids, metrics, the access log, authentication and clients that leave."""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayembed.serving.authentication import ApiClient, Keyring
from rayembed.serving.errors import ApiError
from rayembed.serving.metrics import IngressMetrics

access_logger = logging.getLogger("rayembed.access")

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_DISCONNECTED = 499  # the client left; never sent
_OPEN_PATHS = ("/docs", "/openapi.json", "/health", "/healthz", "/ping")
_OPEN_FOLDERS = ("/health/", "/v1/health/", "/assets/", "/static-offline-docs/")
_BROWSER_PATHS = ("/debug",)


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
        account: the holder of the key, where there are keys.
        trace: headers of the trace that the request belongs to.
    """

    request_id: str
    client: str = ""
    model: str = ""
    inputs: int = 0
    tokens: int = 0
    truncated: int = 0
    digest: str = ""
    account: ApiClient | None = field(default=None, repr=False)
    trace: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def reserve(self, tokens: int) -> Iterator[None]:
        """Charge an estimate for the duration of the work, then what it was.

        A refused request costs nothing. One that failed, or whose client left, costs the estimate: the work
        was done.
        """
        if self.account is None:
            yield
            return
        self.account.check_tokens()
        self.account.charge(tokens)
        try:
            yield
        except ApiError as error:
            if error.problem.status != 500:
                self.account.charge(-tokens)
            raise
        self.account.charge(self.tokens - tokens)


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
        if scope["method"] == "HEAD":  # servers leave out the body by themselves
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        record = RequestRecord(
            _request_id(headers),
            trace={name: headers[name] for name in ("traceparent", "tracestate") if headers.get(name)},
        )
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
            known = {name: value for name, value in vars(record).items() if name not in ("account", "trace")}
            line = {"route": route, "status": status, "seconds": round(seconds, 4), **known}
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
            client = self._keyring.admit(Headers(scope=scope))
        except ApiError as error:
            response = error.problem.response()
            if error.problem.status == 401 and _path(scope) in _BROWSER_PATHS:
                response.headers["WWW-Authenticate"] = 'Basic realm="any name, and an API key as password"'
            return await response(scope, receive, send)
        record: RequestRecord = scope["state"]["record"]
        record.client, record.account = client.name, client
        await self._app(scope, receive, send)


class DropAbandonedMiddleware:
    """Cancels the work of a request whose client goes away, as Ray Serve's proxy does."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        received = asyncio.Event()
        work = asyncio.current_task()
        assert work is not None, "servers run each request as a task"
        gone = False

        async def noticed() -> Message:
            message = await receive()
            if not message.get("more_body"):
                received.set()
            return message

        async def client_gone() -> None:
            nonlocal gone
            await received.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            work.cancel()

        watch = asyncio.create_task(client_gone())
        try:
            await self._app(scope, noticed, send)
        except asyncio.CancelledError:
            if not gone:
                raise
            work.uncancel()
        finally:
            watch.cancel()


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _is_open(scope: Scope) -> bool:
    """Pages without data, and the probes of orchestrators."""
    if _path(scope) == "/":  # the page; clients of text-embeddings-inference POST to it
        return scope["method"] == "GET"
    return _path(scope) in _OPEN_PATHS or _path(scope).startswith(_OPEN_FOLDERS)


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", "")) or "/"

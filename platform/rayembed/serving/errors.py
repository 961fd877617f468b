"""Every failure of the endpoint in the one shape that OpenAI clients expect, `{"error": {...}}`.

Messages name the rule and the remedy. They never repeat what the client sent: inputs may be private or large.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rayembed.common.errors import ResourceError

logger = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 500: "internal_error"}
_MESSAGES = {
    404: "no such path; GET /docs lists what there is, such as POST /v1/embeddings and GET /v1/models",
    405: "this path does not take that method; the header Allow names those it takes",
}
_FORMS = ("cohere", "tei")  # of the body of /rerank
_INPUT_RULE = (
    "an input is a non-empty string, or a non-empty list of non-empty strings, of token ids, "
    "or of non-empty lists of token ids"
)


@dataclass(frozen=True)
class Problem:
    """Why a request was not answered; travels from the model replica to the ingress as a value.

    Attributes:
        status: HTTP status.
        message: what is wrong and what to do.
        param: request field that is at fault.
        code: stable name of the failure for programs.
        retry_after_s: whole seconds after which the same request may succeed.
        replica: name of the replica that says so; empty for the HTTP side.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    replica: str = ""

    def response(self) -> JSONResponse:
        """The HTTP response."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code or _CODES.get(self.status, "invalid_request"),
        }
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)


class ApiError(HTTPException):
    """Ends a request with a problem."""

    def __init__(self, problem: Problem):
        super().__init__(problem.status, problem.message)
        self.problem = problem


class NoReplicaError(Exception):
    """No replica of a model runs and none could be started in time."""


def overloaded(retry_after_s: int) -> Problem:
    """The answer to a request that the queue has no room for."""
    return Problem(
        429,
        f"the endpoint is at its limit of queued tokens; send the request again in {retry_after_s} s",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def failed() -> Problem:
    """The answer to a request that something here failed on."""
    return Problem(500, "the endpoint failed on this request; its log has the reason")


def unavailable(reason: str) -> Problem:
    """The answer while no model replica can be reached."""
    return Problem(503, f"{reason}; send the request again", code="unavailable", retry_after_s=1)


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer every failure in the one shape."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.problem.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        return validation_problem(found).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = _MESSAGES.get(error.status_code, str(error.detail))
        if "Access-Control-Request-Method" in request.headers:
            message = (
                "pages of other origins may not ask this endpoint; serve with cors_origins to allow some"
            )
        response = Problem(error.status_code, message).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(OSError)
    @app.exception_handler(ResourceError)
    async def store_failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("the store of files failed: %s", error)
        return unavailable("the store of files does not answer").response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("request failed: %s", type(error).__name__)
        return failed().response()


def validation_problem(errors: Sequence[Any]) -> Problem:
    """One sentence for what pydantic found wrong with a body, and where.

    A field of several forms has an error for each; the one that got furthest is the form that was meant. For
    `["one", null]` those are (input), (input, 1), (input, 0) and (input, 0): it is item 1 of a list of texts.
    """
    error = max(errors, key=lambda error: [part for part in error["loc"] if isinstance(part, int)])
    location = [part for part in error["loc"] if part not in _FORMS]
    if error["type"] == "json_invalid":
        return Problem(400, f"the body is not valid JSON (character {location[0]})", code="invalid_json")
    if error["type"] == "refused":
        context = error["ctx"]
        return Problem(400, context["message"], param=context["param"], code=context["code"])
    if not location:
        return Problem(
            400, "send a JSON object with the header Content-Type: application/json", code="invalid_json"
        )
    field = str(location[0])
    if error["type"] == "missing":
        return Problem(400, f"{field} is missing", param=field, code="missing_field")
    place = field + "".join(f"[{part}]" if isinstance(part, int) else "" for part in location[1:])
    reason = error["msg"].removeprefix("Value error, ")
    if field == "input" and error["type"] != "value_error":
        reason = _INPUT_RULE
    elif error["type"] in ("too_short", "string_too_short"):
        reason = "it is empty"
    return Problem(400, f"{place}: {reason}", param=field)

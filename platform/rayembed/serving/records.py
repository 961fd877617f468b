"""What is known of one request, for metrics, logs and limits; never its inputs."""

from dataclasses import dataclass

from starlette.requests import Request


@dataclass
class RequestRecord:
    """Filled while a request is answered.

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


def record_of(request: Request) -> RequestRecord:
    """The record that the middleware made for this request."""
    return request.state.record

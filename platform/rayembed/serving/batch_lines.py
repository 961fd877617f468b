"""The lines of a batch's input file: the part that each belongs to, and its request or why it has none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

import orjson
from pydantic import Field, ValidationError

from rayembed.serving.api.dialect import Text
from rayembed.serving.api.openai import EmbeddingRequest
from rayembed.serving.batch_store import BatchError
from rayembed.serving.body import Body, ValueCounter
from rayembed.serving.errors import ApiError, Problem, validation_problem

_PART_LINES, _PART_BYTES = 512, 2**20


class BatchLine(Body):
    """A line of an input file."""

    custom_id: Annotated[Text, Field(max_length=512)]
    method: Literal["POST"]
    url: Literal["/v1/embeddings"]
    body: dict[str, Any]


@dataclass(frozen=True)
class ReadLine:
    """A line that was read: a request, or why it is none."""

    number: int
    custom_id: str | None
    request: EmbeddingRequest | Problem | BatchError


class LineReader:
    """Reads the lines of one batch; knows the `custom_id` of the earlier ones."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def read(self, number: int, raw: bytes | None, most_bytes: int) -> ReadLine:
        """A line from its bytes; None stands for one above `most_bytes`."""
        parsed = None
        try:
            if raw is None:
                message = f"longer than {most_bytes} bytes (max_body_bytes); split the request"
                raise ApiError(Problem(413, message))
            ValueCounter().feed(raw)
            parsed = orjson.loads(raw)
            if not isinstance(parsed, dict):
                raise ApiError(Problem(400, "not an object with custom_id, method, url and body"))
            line = BatchLine.model_validate(parsed)
            if (first := self._first.setdefault(line.custom_id, number)) != number:
                raise ApiError(Problem(400, f"custom_id is that of line {first}", "custom_id"))
        except orjson.JSONDecodeError:
            problem = Problem(400, "not valid JSON", code="invalid_json")
        except ApiError as error:
            problem = error.problem
        except ValidationError as error:
            problem = validation_problem(error.errors())
        else:
            return ReadLine(number, line.custom_id, _request(line.body))
        custom_id = parsed.get("custom_id") if isinstance(parsed, dict) else None
        reason = BatchError(
            code=problem.code or "invalid_request",
            message=f"line {number}: {problem.message}",
            line=number,
            param=problem.param,
        )
        return ReadLine(number, custom_id if isinstance(custom_id, str) else None, reason)


def _request(body: dict[str, Any]) -> EmbeddingRequest | Problem:
    try:
        return EmbeddingRequest.model_validate(body)
    except ValidationError as error:
        return validation_problem(error.errors())


def numbered_lines(stream: BinaryIO, most_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Part, number and bytes of each line that is not blank; None for the bytes of one above `most_bytes`.

    Which lines make a part depends on the file alone.
    """
    part = number = lines = size = 0
    while read := stream.readline(most_bytes + 1):
        number += 1
        line: bytes | None = read.removeprefix(b"\xef\xbb\xbf") if number == 1 else read
        length = len(read)
        while len(read) > most_bytes and not read.endswith(b"\n"):
            line, read = None, stream.readline(most_bytes + 1)
        if line is not None and not line.strip():
            continue
        if lines == _PART_LINES or (lines and size + length > _PART_BYTES):
            part, lines, size = part + 1, 0, 0
        lines, size = lines + 1, size + length
        yield part, number, line

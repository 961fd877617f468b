"""Clients of OpenAI-compatible endpoints: keys from the environment, retries with backoff, clear errors."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from rayembed.common.errors import RefusedItemError, RequestError, ResourceError
from rayembed.common.paths import push
from rayembed.common.settings import Frozen

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


RETRIES = 5
"""Times a failed request is repeated; the library's growing pauses add up to about a quarter of a minute."""


_ABOUT_THE_INPUT = (400, 413, 422)
_PUSH_SECONDS = 60.0


class EndpointConfig(Frozen):
    """Where an endpoint is and how it is called."""

    url: str = Field(description="base URL, for example http://127.0.0.1:8000/v1", pattern=r"^https?://")
    model: str = Field(description="name of the model there")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="environment variable with the key; unset for endpoints without one"
    )
    timeout: float = Field(120.0, gt=0, description="seconds to wait for one answer")
    concurrency: int = Field(8, ge=1, description="requests in flight")


def connect_endpoint(config: EndpointConfig, *, retries: int | None = None) -> "openai.OpenAI":
    """A client that repeats failed requests by itself, by default `RETRIES` times; nothing is sent yet.

    Raises:
        ResourceError: the package openai is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise ResourceError(
            "endpoints need the package openai; install it with `pip install 'rayembed[endpoint]'`"
        ) from error
    return openai.OpenAI(
        base_url=config.url,
        api_key=os.environ.get(config.key_variable, "none"),
        timeout=config.timeout,
        max_retries=RETRIES if retries is None else retries,
    )


@dataclass(frozen=True)
class ChatAnswer:
    """What a chat model answers, its reasoning left out, and the tokens used; `cut` at the limit of them."""

    text: str
    cut: bool
    prompt_tokens: int
    answer_tokens: int


class Chat:
    """Asks a chat model. An option that the service does not know is left out from then on.

    Reasoning models want `max_completion_tokens` in place of `max_tokens`, take no temperature, and may write
    their thoughts into the answer: `<think>Is it? ...</think> yes` is the answer yes.
    """

    def __init__(self, config: EndpointConfig, **options: Any):
        self._client = connect_endpoint(config)
        self._model = config.model
        self._options = options
        self._unknown: set[str] = set()

    def __call__(self, prompt: str, **options: Any) -> ChatAnswer:
        """Answer to one prompt; `options` are those of this request alone."""
        import openai

        while True:
            given = {
                name: value for name, value in (self._options | options).items() if name not in self._unknown
            }
            try:
                answer = self._client.chat.completions.create(
                    model=self._model, messages=[{"role": "user", "content": prompt}], **given
                )
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                unknown = _unknown_option(_server_message(error), given)
                if unknown is None:
                    raise
                logger.info("%s takes no %s; it is left out", self._model, unknown)
                self._unknown.add(unknown)
                if unknown == "max_tokens":
                    self._options = {**self._options, "max_completion_tokens": given[unknown]}
        choice, used = answer.choices[0], answer.usage
        return ChatAnswer(
            without_reasoning(choice.message.content or ""),
            choice.finish_reason == "length",
            used.prompt_tokens if used else 0,
            used.completion_tokens if used else 0,
        )


def answer_form(**fields: dict[str, Any]) -> dict[str, Any]:
    """`response_format` of a JSON object with these fields, each the JSON schema of a value."""
    schema = {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def without_reasoning(text: str) -> str:
    """An answer without the thoughts in front of it, whose opening tag some services leave out."""
    tag = r"[<\[]{}think(?:ing)?[>\]]"  # <think>, <thinking> and [THINK]
    opening, closing = tag.format(""), tag.format("/")
    text = re.sub(rf"{opening}.*?({closing}|$)", "", text, flags=re.DOTALL | re.IGNORECASE)
    return re.split(closing, text, flags=re.IGNORECASE)[-1].strip()


def _unknown_option(message: str, given: Iterable[str]) -> str | None:
    """The option that a refusal complains about; None where it complains about the input."""
    if "response_format" in given and re.search(r"response_format|json_schema|structured output", message):
        return "response_format"
    if not re.search(
        r"unsupported|not support|unknown|unrecognized|not take|not permitted|n't (support|take)",
        message,
        re.I,
    ):
        return None
    return next((name for name in given if re.search(rf"\b{name}\b", message)), None)


def ask_all(config: EndpointConfig, ask: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """Answers as they come, with `config.concurrency` requests in flight.

    After a failure nothing more is sent, and what is in flight still comes before the failure is raised:
    answers that were paid for are not lost.

    Raises:
        RequestError, ResourceError: as `endpoint_errors` says.
    """
    failure: BaseException | None = None
    waiting = iter(items)
    with ThreadPoolExecutor(config.concurrency) as threads:
        running = {threads.submit(_ask, config, ask, item) for item in islice(waiting, config.concurrency)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for request in done:
                error = request.exception()
                if error is None:
                    yield request.result()
                failure = failure or error
            if failure is None:
                running |= {threads.submit(_ask, config, ask, item) for item in islice(waiting, len(done))}
    if failure is not None:
        raise failure


@contextmanager
def kept_answers(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what writes an answer down as a line of JSON, at once, so that it is not asked for twice.

    A file in a store is brought there with the first answer, then every minute, and at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pushed = float("-inf")
    with path.open("a", encoding="utf-8") as stream:

        def keep(record: dict[str, Any]) -> None:
            nonlocal pushed
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            if time.monotonic() - pushed > _PUSH_SECONDS:
                push(path)
                pushed = time.monotonic()

        try:
            yield keep
        finally:
            push(path)


def stored_answers(path: Path) -> Iterator[dict[str, Any]]:
    """Answers kept in a file; what a run that was cut off left of its last line is removed."""
    if not path.is_file():
        return
    complete, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        logger.warning("%s ends in the middle of a line, which is removed", path)
        path.write_bytes(complete + b"\n" if complete else b"")
    for line in complete.splitlines():
        yield json.loads(line)


@contextmanager
def endpoint_errors(config: EndpointConfig, retries: int | None = None) -> Iterator[None]:
    """Turn failures of the client library into errors that name the URL, the reason and what to do.

    Raises:
        RequestError: the endpoint refuses what it was asked; the message is its own. It is a
            RefusedItemError where the fault may lie with this one input.
        ResourceError: it refuses the key, is overloaded or stays away after all repetitions.
    """
    import openai

    try:
        yield
    except openai.AuthenticationError as error:
        raise ResourceError(
            f"{config.url} refuses the key ({error.status_code}); set the environment variable "
            f"{config.key_variable}"
        ) from error
    except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
        raise ResourceError(
            f"{config.url} stayed away for {RETRIES if retries is None else retries} repetitions "
            f"({type(error).__name__}: {error}); check the address and that the server is up, then run the "
            "same command again: finished work is stored"
        ) from error
    except openai.APIStatusError as error:
        kind = RefusedItemError if error.status_code in _ABOUT_THE_INPUT else RequestError
        raise kind(
            f"{config.url}, model {config.model}: status {error.status_code}; {_server_message(error)}"
        ) from error


def _ask(config: EndpointConfig, ask: Callable[[Item], Answer], item: Item) -> Answer:
    with endpoint_errors(config):
        return ask(item)


def _server_message(error: "openai.APIStatusError") -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", "the server gave no reason"))[:200]

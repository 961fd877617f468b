"""An OpenAI-compatible endpoint in the form of an engine, so that a service is scored as a checkpoint is.

Services differ: some take few texts a request, refuse empty ones, answer out of order, or tell neither their
models nor their usage. A refused request is halved until it is known which: fewer texts pass, or one is bad.

The client library waits and asks again when the service is busy (429, with the time it names), fails (5xx)
or is gone for a while; an evaluation over a service that is being restarted goes on where it was.
"""

import base64
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayembed.common.endpoint_client import EndpointConfig, ask_all, connect_endpoint, endpoint_errors
from rayembed.common.errors import RefusedItemError, RequestError, UserError
from rayembed.contract import Contract
from rayembed.engine.engine import Encoded

logger = logging.getLogger(__name__)

# The library's waits grow to eight seconds, so this is a quarter of an hour without any answer.
PATIENCE_REQUESTS = 120
TEXTS_PER_REQUEST = 64
_CONTRACT_FIELDS = ("instructions", "symmetric", "max_length", "instruction_template")
_FIRST_RETRIES = 2  # a wrong address is told soon


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible service.

    Attributes:
        url: base address, such as http://127.0.0.1:8000/v1.
        model: name of the served model.
    """

    url: str
    model: str


class EndpointEngine:
    """What an evaluation needs of an engine, over HTTP.

    Args:
        client: client of the OpenAI library.
        endpoint: where the model is.
        contract: template of instructions, and instructions that the service knows by name.
        digest: of the weights, or of what is known of the service.
        dimensions: width of the vectors.
        named: whether the service takes the field `instruction`; else it is put in front of the text.
    """

    def __init__(
        self, client: Any, endpoint: Endpoint, contract: Contract, digest: str, dimensions: int, named: bool
    ):
        self._client = client
        self._config = EndpointConfig(url=endpoint.url, model=endpoint.model)
        self._named = named
        self._most_texts = TEXTS_PER_REQUEST
        self.contract = contract
        self.digest = digest
        self.dimensions = dimensions

    @classmethod
    def connect(cls, endpoint: Endpoint, *, patience: int = PATIENCE_REQUESTS) -> "EndpointEngine":
        """Ask the endpoint for its model.

        Args:
            endpoint: where the model is.
            patience: how often a request is sent again before it counts as failed.

        Raises:
            ResourceError: the client library is not installed, or the endpoint does not answer.
            RequestError: it serves no model of that name.
        """
        config = EndpointConfig(url=endpoint.url, model=endpoint.model)
        client = connect_endpoint(config, retries=patience)
        _show_waiting()
        cards = _cards(client, config)
        if cards is not None and endpoint.model not in cards:
            raise RequestError(
                f"{endpoint.url} does not serve {endpoint.model!r}; it serves {', '.join(cards) or 'nothing'}"
            )
        about = (cards or {}).get(endpoint.model) or {}
        # Other services may use the same words for something else.
        told = _CONTRACT_FIELDS if "instructions" in about else ()
        # A service that says nothing of its weights is told apart by its address and name alone.
        unknown = hashlib.sha256(f"{endpoint.url} {endpoint.model}".encode()).hexdigest()
        if "digest" not in about:
            logger.warning(
                "%s does not tell the digest of its weights; results are kept by address", endpoint.url
            )
        engine = cls(
            client,
            endpoint,
            Contract(**{name: about[name] for name in told if about.get(name)}),
            about.get("digest") or unknown,
            int(about.get("dimensions") or 0),
            named="instructions" in about,
        )
        if not engine.dimensions:
            engine.dimensions = len(engine._ask(["width"], {})[0][0])
        return engine

    def encode(self, texts: Sequence[str], *, instruction: str | None = None) -> Encoded:
        """Embed texts in the order given; an instruction goes into its field, or in front of the text.

        An empty text that the service refuses gets a vector of zeros, which is like no other.

        Raises:
            RequestError: the service refuses a text; the message is the service's own.
            ResourceError: the service stayed away for longer than its patience.
        """
        prefix = "" if self._named else self.contract.prefix(instruction)
        extra = {"instruction": instruction or ""} if self._named else {}
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        tokens = [0] * len(texts)

        def ask(start: int) -> tuple[int, list[np.ndarray | None], int]:
            part = texts[start : start + TEXTS_PER_REQUEST]
            return start, *self._answered([prefix + text for text in part], list(part), extra)

        for start, found, used in ask_all(self._config, ask, range(0, len(texts), TEXTS_PER_REQUEST)):
            refused = [start + place for place, vector in enumerate(found) if vector is None]
            if refused:
                logger.warning(
                    "%s refuses %d empty texts; they count as zeros", self._config.url, len(refused)
                )
            if len(vectors[0]) == 0:  # of a service that does not tell its width
                vectors = np.zeros(
                    (len(texts), next(len(one) for one in found if one is not None)), np.float32
                )
            for place, vector in enumerate(found, start):
                if vector is not None:
                    vectors[place] = vector / (np.linalg.norm(vector) or 1)
                tokens[place] = used // len(found)
        return Encoded(vectors, tokens, [False] * len(texts))

    def _answered(
        self, prefixed: list[str], bare: list[str], extra: dict[str, Any]
    ) -> tuple[list[np.ndarray | None], int]:
        """Vectors of texts, None for an empty one that the service refuses, and the tokens used."""
        if len(prefixed) <= self._most_texts:
            try:
                vectors, used = self._ask(prefixed, extra)
                return list(vectors), used
            except RefusedItemError as error:
                if len(prefixed) == 1:
                    if not bare[0].strip():
                        return [None], 0
                    raise RequestError(f"{error}; the text begins with {bare[0][:60]!r}") from error
        half = len(prefixed) // 2
        first, first_used = self._answered(prefixed[:half], bare[:half], extra)
        second, second_used = self._answered(prefixed[half:], bare[half:], extra)
        if all(one is not None for one in first + second) and len(prefixed) <= self._most_texts:
            self._most_texts = half  # nothing was wrong with the texts: there were too many of them
            logger.info("%s takes no %d texts; %d are sent at a time", self._config.url, len(prefixed), half)
        return first + second, first_used + second_used

    def _ask(self, texts: list[str], extra: dict[str, Any]) -> tuple[list[np.ndarray], int]:
        with endpoint_errors(self._config, self._client.max_retries):
            answer = self._client.embeddings.create(
                model=self._config.model, input=texts, encoding_format="base64", extra_body=extra
            )
        used = answer.usage.prompt_tokens if getattr(answer, "usage", None) else 0
        return _vectors_of(answer, len(texts), self._config.url), used


def _cards(client: Any, config: EndpointConfig) -> dict[str, dict[str, Any]] | None:
    """What the service tells of each of its models; None where it tells nothing."""
    import openai

    with endpoint_errors(config, _FIRST_RETRIES):
        try:
            listed = client.with_options(max_retries=_FIRST_RETRIES).models.list()
        except openai.NotFoundError:
            return None
        return {card.id: card.model_extra or {} for card in listed}


def _vectors_of(answer: Any, count: int, url: str) -> list[np.ndarray]:
    """One vector a text, in the order of the texts. Services may answer in another one, or without `index`.

    Raises:
        UserError: there is not one vector of finite numbers for each text, all of one width.
    """
    items = getattr(answer, "data", None) or []
    places: list[Any] = [getattr(item, "index", None) for item in items]
    if places == [None] * count:
        places = list(range(count))
    if sorted(place for place in places if isinstance(place, int)) != list(range(count)):
        raise UserError(
            f"{url} answers {count} texts with the indices {places[:5]}...; each text needs one vector"
        )
    try:
        found = {place: _vector(item.embedding) for place, item in zip(places, items, strict=True)}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{url} answers with something that is no vector ({error})") from error
    if len({vector.shape for vector in found.values()}) > 1:
        raise UserError(f"{url} answers with vectors of different widths; each text needs one of one width")
    for place, vector in found.items():
        if not np.isfinite(vector).all():
            raise UserError(f"{url} answers text {place + 1} of {count} with NaN or infinite numbers")
    return [found[place] for place in range(count)]


def _vector(embedding: str | list[float]) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)


def _show_waiting() -> None:
    """Let the client library's own "Retrying request" lines, which name the wait, into the log."""
    library = logging.getLogger("openai._base_client")
    package = logging.getLogger("rayembed")
    library.setLevel(logging.INFO)
    for handler in package.handlers:
        if handler not in library.handlers:
            library.addHandler(handler)

"""Vectors of an OpenAI-compatible endpoint, for teachers and evaluations.

Services differ: some take few texts a request, refuse empty ones, answer out of order, or tell neither their
models nor their usage. A refused request is halved until it is known which: fewer texts pass, or one is bad.
"""

import base64
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayembed.common.endpoint_client import EndpointConfig, ask_all, connect_endpoint, endpoint_errors
from rayembed.common.errors import RefusedItemError, RequestError, UserError

logger = logging.getLogger(__name__)


class EmbeddingClient:
    """Asks an endpoint for vectors.

    Args:
        config: where it is.
        most_texts: texts a request; fewer where the service takes only fewer.
        retries: how often a failed request is sent again; None: the library's own number.
        options: of every request, such as `dimensions`.
    """

    def __init__(
        self, config: EndpointConfig, *, most_texts: int, retries: int | None = None, **options: Any
    ):
        self.client = connect_endpoint(config, retries=retries)
        self._config, self._options = config, options
        self._texts_per_request = self._most_texts = most_texts

    def embed(
        self, texts: Sequence[str], *, prefix: str = "", width: int = 0, **extra: Any
    ) -> tuple[np.ndarray, list[int]]:
        """fp32 vectors (N, D) of texts in the order given, and their tokens, of each request evenly.

        An empty text that the service refuses gets a vector of zeros, which is like no other.

        Args:
            texts: what to embed.
            prefix: in front of every text.
            width: of the vectors where every text is refused.
            extra: further fields of the request.

        Raises:
            RequestError: the service refuses a text; the message is the service's own.
            ResourceError: the service stayed away after all repetitions.
            UserError: the answer has no vector for a text.
        """
        vectors: list[np.ndarray | None] = [None] * len(texts)
        tokens = [0] * len(texts)

        def ask(start: int) -> tuple[int, list[np.ndarray | None], int]:
            part = texts[start : start + self._texts_per_request]
            return start, *self._answered([prefix + text for text in part], list(part), extra)

        starts = range(0, len(texts), self._texts_per_request)
        for start, found, used in ask_all(self._config, ask, starts):
            vectors[start : start + len(found)] = found
            tokens[start : start + len(found)] = [used // len(found)] * len(found)
        if refused := sum(vector is None for vector in vectors):
            logger.warning("%s refuses %d empty texts; they count as zeros", self._config.url, refused)
        width = next((len(vector) for vector in vectors if vector is not None), width)
        rows = [np.zeros(width, np.float32) if vector is None else vector for vector in vectors]
        return np.array(rows, dtype=np.float32).reshape(len(texts), width), tokens

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
        with endpoint_errors(self._config, self.client.max_retries):
            answer = self.client.embeddings.create(
                model=self._config.model,
                input=texts,
                encoding_format="base64",
                extra_body=extra,
                **self._options,
            )
        used = answer.usage.prompt_tokens if getattr(answer, "usage", None) else 0
        return vectors_of(answer, len(texts), self._config.url), used


def vectors_of(answer: Any, count: int, url: str) -> list[np.ndarray]:
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

"""An OpenAI-compatible endpoint in the form of an engine, so that a service is scored as a checkpoint is.

The client library waits and asks again when the service is busy (429, with the time it names), fails (5xx)
or is gone for a while; an evaluation over a service that is being restarted goes on where it was.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayembed.common.embedding_client import EmbeddingClient
from rayembed.common.endpoint_client import EndpointConfig, endpoint_errors
from rayembed.common.errors import RequestError
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
    """What an evaluation needs of an engine, over HTTP; which number format it has is the service's matter.

    Args:
        client: client of the endpoint.
        contract: template of instructions, and instructions that the service knows by name.
        digest: of the weights, or of what is known of the service.
        dimensions: width of the vectors.
        named: whether the service takes the field `instruction`; else it is put in front of the text.
    """

    precision = None

    def __init__(
        self, client: EmbeddingClient, contract: Contract, digest: str, dimensions: int, named: bool
    ):
        self._client = client
        self._named = named
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
        client = EmbeddingClient(config, most_texts=TEXTS_PER_REQUEST, retries=patience)
        _show_waiting()
        cards = _cards(client.client, config)
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
            Contract(**{name: about[name] for name in told if about.get(name)}),
            about.get("digest") or unknown,
            int(about.get("dimensions") or 0),
            named="instructions" in about,
        )
        if not engine.dimensions:
            engine.dimensions = engine.encode(["width"]).vectors.shape[1]
        return engine

    def encode(self, texts: Sequence[str], *, instruction: str | None = None) -> Encoded:
        """Embed texts in the order given; an instruction goes into its field, or in front of the text.

        Raises:
            UserError: as `EmbeddingClient.embed` says.
        """
        prefix = "" if self._named else self.contract.prefix(instruction)
        extra = {"instruction": instruction or ""} if self._named else {}
        vectors, tokens = self._client.embed(texts, prefix=prefix, width=self.dimensions, **extra)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return Encoded(vectors / np.where(lengths, lengths, 1), tokens, [False] * len(texts))


def _cards(client: Any, config: EndpointConfig) -> dict[str, dict[str, Any]] | None:
    """What the service tells of each of its models; None where it tells nothing."""
    import openai

    with endpoint_errors(config, _FIRST_RETRIES):
        try:
            listed = client.with_options(max_retries=_FIRST_RETRIES).models.list()
        except openai.NotFoundError:
            return None
        return {card.id: card.model_extra or {} for card in listed}


def _show_waiting() -> None:
    """Let the client library's own "Retrying request" lines, which name the wait, into the log."""
    library = logging.getLogger("openai._base_client")
    package = logging.getLogger("rayembed")
    library.setLevel(logging.INFO)
    for handler in package.handlers:
        if handler not in library.handlers:
            library.addHandler(handler)

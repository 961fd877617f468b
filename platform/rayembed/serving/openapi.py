"""The OpenAPI document with the rules that depend on the served models.

Which names, widths, token ids and instructions are valid is known only when a replica has described its
model; from then on the document says so, and every request that agrees with it is accepted.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI

from rayembed.serving.config import ServeConfig
from rayembed.serving.gateway import Gateway
from rayembed.serving.schemas.openai import ModelCard

_REQUESTS = (
    "EmbeddingRequest",
    "CohereEmbedRequest",
    "RerankRequest",
    "EmbedRequest",
    "SimilarityRequest",
    "Cut",
    "ShowTokensRequest",
    "Sentences",
)
_BESIDE_A_QUERY = ("documents", "sentences")
_LISTS = ("input", "texts", "documents", "inputs", "sentences")


def describe_served_models(app: FastAPI, gateway: Gateway, config: ServeConfig) -> None:
    """Make `app` answer /openapi.json with what the models that are known by then accept."""
    general = app.openapi

    def openapi() -> dict[str, Any]:
        app.openapi_schema = None
        document = general()
        schemas = document["components"]["schemas"]
        for name in _REQUESTS:
            _specify(schemas[name]["properties"], gateway, config)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _specify(properties: dict[str, Any], gateway: Gateway, config: ServeConfig) -> None:
    cards = gateway.known_cards
    for name, field in properties.items():
        if name == "model":
            _each(field, "string")["enum"] = gateway.names
        elif name in _LISTS:
            for part in _parts(field):
                if part.get("type") == "array":
                    part["maxItems"] = config.max_inputs - (name in _BESIDE_A_QUERY)
                _limit_token_ids(part, cards)
        elif name in ("dimensions", "output_dimension") and cards:
            _each(field, "integer")["maximum"] = max(card.dimensions for card in cards)
        elif name == "prompt_name" and cards:
            # No name at all is valid for a model without instructions.
            _each(field, "string")["enum"] = sorted({key for card in cards for key in card.instructions})


def _limit_token_ids(part: dict[str, Any], cards: Sequence[ModelCard]) -> None:
    while part.get("type") == "array":
        part = part["items"]
    if part.get("type") == "integer" and cards:
        part["maximum"] = max(card.vocabulary for card in cards) - 1


def _each(field: dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of an optional field that has a value."""
    return next(part for part in _parts(field) if part.get("type") == kind)


def _parts(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from field.get("anyOf", [field])

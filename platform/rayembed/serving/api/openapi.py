"""Rules in the OpenAPI document that depend on the served models.

Which names, widths, token ids and instructions are valid is known only when a replica has described its
model; from then on the document says so, and every request that agrees with it is accepted. A field declares
its rule where it is defined: `Annotated[int, WhenServed(lambda served: {"maximum": served.dimensions})]`.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from rayembed.serving.messages import ModelCard
from rayembed.serving.router import ModelRouter


@dataclass(frozen=True)
class ServedModels:
    """What is known when the document is written.

    Attributes:
        names: every name that a request may give.
        max_inputs: most inputs in one request.
        cards: descriptions that replicas have given so far.
    """

    names: Sequence[str]
    max_inputs: int
    cards: Sequence[ModelCard]


_served: ContextVar[ServedModels | None] = ContextVar("served", default=None)


class WhenServed:
    """Annotation of a field: keywords for its JSON schema, from the models that are served."""

    def __init__(self, rule: Callable[[ServedModels], dict[str, Any]]):
        self._rule = rule

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        served = _served.get()
        return handler(schema) | (self._rule(served) if served else {})


def describe_served_models(app: FastAPI, models: ModelRouter, max_inputs: int) -> None:
    """Make `app` answer /openapi.json with what the models that are known by then accept."""
    general = app.openapi

    def openapi() -> dict[str, Any]:
        app.openapi_schema = None
        token = _served.set(ServedModels(models.names, max_inputs, models.known_cards))
        try:
            return general()
        finally:
            _served.reset(token)

    app.openapi = openapi  # type: ignore[method-assign]

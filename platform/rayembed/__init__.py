"""Train, evaluate and serve generalist text embedding models on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayembed.engine.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Embedder`, and with it torch, only when it is used."""
    if name == "Embedder":
        return import_module("rayembed.engine.embedder").Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

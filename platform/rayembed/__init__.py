"""Train, evaluate and serve generalist text embedding models on Ray.

Every verb is also a command, `rayembed VERB`, and a job, `jobs/VERB.py`, with the same options.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayembed.cli.compress import compress
    from rayembed.cli.embed import embed
    from rayembed.cli.evaluate import evaluate
    from rayembed.cli.merge import merge
    from rayembed.cli.mine import mine
    from rayembed.cli.serve import serve
    from rayembed.cli.synthesize import synthesize
    from rayembed.cli.train import train
    from rayembed.engine.embedder import Embedder

__version__ = "0.2.0.dev0"
__all__ = [
    "Embedder",
    "__version__",
    "compress",
    "embed",
    "evaluate",
    "merge",
    "mine",
    "serve",
    "synthesize",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, so that `import rayembed` takes no time."""
    if name == "Embedder":
        return import_module("rayembed.engine.embedder").Embedder
    if name in __all__:
        return getattr(import_module(f"rayembed.cli.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

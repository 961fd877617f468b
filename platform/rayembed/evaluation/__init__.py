"""Evaluation: mteb tasks over the inference engine, spread over Ray actors."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `run` on first use: mteb takes seconds to import, too long for a command's help."""
    if name == "run":
        from rayembed.evaluation.runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

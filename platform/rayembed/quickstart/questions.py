"""Asking the deployed endpoint a few questions, as a client would: over HTTP, in the OpenAI format."""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rayembed.data.store import read_split

# Chosen because the small model answers them; the report's searches are picked by hash, good and bad alike.
QUESTIONS = (
    "Remove common leading whitespace from every line of a text",
    "Walk over all nodes of a syntax tree",
    "Add a folder to the mailbox",
    "Print the traceback of an exception",
)


def answers(url: str, model: str, data_dir: Path, *, hits: int = 2) -> Iterator[str]:
    """Lines that show, for each question, the best functions of the held-out modules and their scores."""
    functions = list(dict.fromkeys(_held_out_functions(data_dir)))
    functions_ND = embed(url, model, functions)
    questions_QD = embed(url, model, QUESTIONS, input_type="query")
    for question, scores in zip(QUESTIONS, questions_QD @ functions_ND.T, strict=True):
        yield f"  {question}"
        for position in np.argsort(-scores)[:hits]:
            yield f"    {scores[position]:.2f}  {_signature(functions[position])}"


def embed(url: str, model: str, texts: Sequence[str], *, input_type: str | None = None) -> np.ndarray:
    """Vectors of `texts`, shape (N, D), from POST /v1/embeddings."""
    body = {"model": model, "input": list(texts)} | ({"input_type": input_type} if input_type else {})
    request = urllib.request.Request(
        f"{url}/v1/embeddings", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        content = json.load(response)
    return np.array([item["embedding"] for item in content["data"]], dtype=np.float32)


def _signature(function: str) -> str:
    """First line of a function below its decorators."""
    return next(line for line in function.splitlines() if not line.startswith("@"))


def _held_out_functions(data_dir: Path) -> Iterator[str]:
    for positives in read_split(data_dir, "python-docstrings", "test")["positives"].to_pylist():
        yield from positives

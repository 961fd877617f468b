"""Vectors to response bodies."""

import base64
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi.responses import Response

from rayembed.engine.vector_formats import quantise
from rayembed.serving.messages import Embeddings
from rayembed.serving.schemas.cohere import RerankRequest
from rayembed.serving.schemas.fields import EmbeddingType

MODEL_DIGEST_HEADER = "X-Rayembed-Model-Digest"
TRUNCATED_HEADER = "X-Rayembed-Truncated"


def openai_response(
    answer: Embeddings, model: str, encoding_format: str, formats: Sequence[EmbeddingType]
) -> Response:
    """Body of /v1/embeddings."""
    encoded = {kind: _rows(_as_type(answer.vectors, kind), encoding_format) for kind in formats}
    items = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(encoded[formats[0]])
    ]
    if len(formats) > 1:
        for index, item in enumerate(items):
            item["embeddings"] = {kind: rows[index] for kind, rows in encoded.items()}
    return _response({"object": "list", "data": items, "model": model, "usage": usage(answer)}, answer)


def cohere_response(answer: Embeddings, texts: Sequence[str], formats: Sequence[EmbeddingType]) -> Response:
    """Body of /v2/embed."""
    return _response(
        {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "embeddings": {kind: _as_type(answer.vectors, kind) for kind in formats},
            "texts": texts,
            "meta": _cohere_meta(answer),
        },
        answer,
    )


def rerank_response(answer: Embeddings, request: RerankRequest, model: str) -> Response:
    """Body of /v1/rerank: the first vector is the query's, the others are the documents'."""
    scores = similarities(answer)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    texts = request.texts()
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if request.return_documents else {})
        for index in order
    ]
    body = {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": model,
        "results": results,
        "usage": usage(answer),
        "meta": _cohere_meta(answer),
    }
    return _response(body, answer)


def rows_response(rows: Any, answer: Embeddings) -> Response:
    """A body that is a bare list of vectors or numbers."""
    return _response(rows, answer)


def similarities(answer: Embeddings) -> list[float]:
    """Cosine of the first vector with each of the others."""
    query, *documents = answer.vectors
    return (np.stack(documents) @ query).clip(-1, 1).tolist()


def usage(answer: Embeddings) -> dict[str, int]:
    """What the request cost and whether it was cut."""
    return {
        "prompt_tokens": answer.tokens,
        "total_tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def _cohere_meta(answer: Embeddings) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": answer.tokens},
    }
    if answer.truncated:
        meta["warnings"] = [f"{answer.truncated} inputs were cut to the model's maximum length"]
    return meta


def _as_type(vectors: np.ndarray, kind: EmbeddingType) -> np.ndarray:
    if kind == "float":
        return vectors.astype("<f4", copy=False)
    missing = -vectors.shape[1] % 8 if kind in ("binary", "ubinary") else 0
    return quantise(np.pad(vectors, ((0, 0), (0, missing))), kind)


def _rows(vectors: np.ndarray, encoding_format: str) -> list[Any]:
    if encoding_format == "base64":
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    return list(np.ascontiguousarray(vectors))


def _response(body: Mapping[str, Any] | Any, answer: Embeddings) -> Response:
    headers = {MODEL_DIGEST_HEADER: answer.digest, TRUNCATED_HEADER: str(answer.truncated)}
    # Shortest text of a 32-bit float: half the bytes that Python's own writer takes for its 64-bit form.
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json", headers=headers)

"""Smaller vectors: 8-bit integers and bits.

Shapes: N vectors of D dimensions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from rayembed.common.errors import RequestError
from rayembed.common.settings import Frozen

Quantisation = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def quantise(vectors_ND: np.ndarray, kind: Quantisation) -> np.ndarray:
    """Quantise unit vectors one by one, so that a vector does not depend on those it came with.

    int8 and uint8 scale a vector by its own largest magnitude: cosines keep their value, dot products do not,
    so compare such vectors by cosine. uint8 is int8 plus 128. binary keeps the sign of each dimension, eight
    to a byte with the first one in the highest bit; ubinary gives the bytes as they are, binary less 128, the
    two forms that sentence-transformers and OpenAI-compatible services use.

    Args:
        vectors_ND: fp32 unit vectors.
        kind: number format wanted.

    Returns:
        Array of shape (N, D), or (N, D / 8) for bits.

    Raises:
        RequestError: an unknown kind, or bits of a width that is not a multiple of 8.
    """
    if kind not in get_args(Quantisation):
        raise RequestError(
            f"unknown number format {kind!r}; choose one of {', '.join(get_args(Quantisation))}"
        )
    if kind in ("float32", "float16"):
        return vectors_ND.astype(kind)
    if kind in ("int8", "uint8"):
        largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
        scaled = np.rint(vectors_ND / largest_N1 * 127)
        return scaled.astype(np.int8) if kind == "int8" else (scaled + 128).astype(np.uint8)
    if vectors_ND.shape[1] % 8:
        raise RequestError(
            f"{kind} needs a number of dimensions that is a multiple of 8, not {vectors_ND.shape[1]}"
        )
    bits = np.packbits(vectors_ND > 0, axis=1)
    return bits if kind == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


class VectorForm(Frozen):
    """Smaller vectors: cut, and in fewer bits."""

    dimensions: int | None = Field(None, ge=1, description="first dimensions that are kept; None: all")
    format: Quantisation = Field("float32", description="number format")

    def __str__(self) -> str:
        return self.format if self.dimensions is None else f"{self.dimensions}-{self.format}"

    def as_searched(self, vectors_ND: np.ndarray) -> np.ndarray:
        """fp32 unit vectors with the cosines that a search over vectors in this form computes.

        Of bits it is the cosine of -1 and 1, which orders like the number of equal bits.
        """
        from rayembed.contract.vectors import cut_array  # imports torch, which --help does without

        vectors_ND = cut_array(vectors_ND, self.dimensions)
        if self.format in ("binary", "ubinary"):
            numbers_ND = np.where(vectors_ND > 0, 1.0, -1.0)
        else:
            numbers_ND = quantise(vectors_ND, self.format).astype(np.float32)
            numbers_ND -= 128 if self.format == "uint8" else 0
        lengths_N1 = np.linalg.norm(numbers_ND, axis=1, keepdims=True)
        return (numbers_ND / np.maximum(lengths_N1, np.finfo(np.float32).tiny)).astype(np.float32)


class ReducedEngine:
    """An engine whose vectors are scored in a smaller form."""

    def __init__(self, engine: Any, form: VectorForm):
        self._engine, self._form = engine, form
        self.contract, self.digest = engine.contract, f"{engine.digest}-{form}"
        self.dimensions = form.dimensions or engine.dimensions

    def encode(self, texts: Sequence[str], **options: Any) -> Any:
        """As the engine's, with the vectors in their form."""
        encoded = self._engine.encode(texts, **options)
        return replace(encoded, vectors=self._form.as_searched(encoded.vectors))

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
from rayembed.contract.ranges import VectorRanges

Quantisation = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def quantise(
    vectors_ND: np.ndarray,
    kind: Quantisation,
    ranges: VectorRanges | None = None,
    *,
    fills_bytes: bool = False,
) -> np.ndarray:
    """Quantise vectors one by one, so that a vector does not depend on those it came with.

    With ranges, int8 and uint8 divide each dimension's range into 255 steps, and binary says which numbers
    are above their thresholds. Without, int8 and uint8 scale a vector by its own largest magnitude, and
    binary keeps signs. Compare such vectors by cosine, bits by the number of different ones.

    uint8 is int8 plus 128. Bits are eight to a byte with the first one in the highest bit; ubinary gives the
    bytes as they are, binary less 128, the two forms that sentence-transformers and OpenAI-compatible
    services use.

    Args:
        vectors_ND: fp32 vectors, whole or cut; their length does not matter.
        kind: number format wanted.
        ranges: the model's, from its contract.
        fills_bytes: fill the last byte of bits with zeros.

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
    width = vectors_ND.shape[1]
    low_D = threshold_D = high_D = np.zeros(width, np.float32)
    if ranges is not None:
        vectors_ND = _unit(vectors_ND)
        low_D, threshold_D, high_D = ranges.numbers(width)
    if kind in ("int8", "uint8"):
        if ranges is None:
            scaled = np.rint(
                _divided(vectors_ND, np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0)) * 127
            )
        else:
            scaled = np.rint((vectors_ND - low_D) / (high_D - low_D) * 255).clip(0, 255) - 128
        return scaled.astype(np.int8) if kind == "int8" else (scaled + 128).astype(np.uint8)
    if width % 8 and not fills_bytes:
        raise RequestError(f"{kind} needs a number of dimensions that is a multiple of 8, not {width}")
    bits = np.packbits(vectors_ND > threshold_D, axis=1)
    return bits if kind == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return _divided(vectors_ND, np.linalg.norm(vectors_ND, axis=1, keepdims=True))


def _divided(vectors_ND: np.ndarray, by_N1: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(by_N1, np.finfo(np.float32).tiny)


class VectorForm(Frozen):
    """Smaller vectors: cut, and in fewer bits."""

    dimensions: int | None = Field(None, ge=1, description="first dimensions that are kept; None: all")
    format: Quantisation = Field("float32", description="number format")

    @classmethod
    def named(cls, name: str) -> "VectorForm":
        """The form of a name such as int8, 128-float32 or 128-binary.

        Raises:
            RequestError: it is none.
        """
        dimensions, _, form = name.rpartition("-")
        if form not in get_args(Quantisation) or not (dimensions.isdecimal() or not dimensions):
            raise RequestError(
                f"{name!r} is no form of vectors; write DIMENSIONS-FORMAT or FORMAT, such as 128-int8 or "
                f"binary; formats are {', '.join(get_args(Quantisation))}"
            )
        return cls.model_validate({"dimensions": int(dimensions) if dimensions else None, "format": form})

    def __str__(self) -> str:
        return self.format if self.dimensions is None else f"{self.dimensions}-{self.format}"

    def size(self, dimensions: int) -> int:
        """Bytes of a vector of a model of so many dimensions."""
        return quantise(
            np.zeros((1, self.dimensions or dimensions), np.float32), self.format, fills_bytes=True
        ).nbytes

    @property
    def has_ranges(self) -> bool:
        """Whether a model's ranges change them."""
        return self.format not in ("float32", "float16")

    def as_searched(self, vectors_ND: np.ndarray, ranges: VectorRanges | None = None) -> np.ndarray:
        """fp32 unit vectors with the cosines that a search over vectors in this form computes.

        Of bits it is the cosine of -1 and 1, which orders like the number of equal bits.
        """
        from rayembed.contract.vectors import cut_array  # imports torch, which --help does without

        vectors_ND = cut_array(vectors_ND, self.dimensions)
        if self.format in ("binary", "ubinary"):
            packed = quantise(vectors_ND, "ubinary", ranges, fills_bytes=True)
            numbers_ND = np.unpackbits(packed, axis=1, count=vectors_ND.shape[1]) * np.float32(2) - 1
        else:
            form = "int8" if self.format == "uint8" else self.format
            numbers_ND = quantise(vectors_ND, form, ranges).astype(np.float32)
        return _unit(numbers_ND)


class ReducedEngine:
    """An engine whose vectors are scored in a smaller form."""

    def __init__(self, engine: Any, form: VectorForm):
        self._engine, self._form = engine, form
        self.contract, self.precision = engine.contract, engine.precision
        self.digest = f"{engine.digest}-{form}"
        self.dimensions = form.dimensions or engine.dimensions

    def encode(self, texts: Sequence[str], **options: Any) -> Any:
        """As the engine's, with the vectors in their form."""
        encoded, ranges = self._engine.encode(texts, **options), self.contract.vector_ranges
        return replace(encoded, vectors=self._form.as_searched(encoded.vectors, ranges))

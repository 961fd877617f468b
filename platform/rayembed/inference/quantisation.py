"""Smaller number formats for vectors: bytes and bits.

Shapes: N vectors of width D.
"""

from typing import Literal

import numpy as np

from rayembed.errors import RequestError

QuantisationKind = Literal["float", "int8", "uint8", "binary", "ubinary"]
_LARGEST = 127


def quantise(vectors: np.ndarray, kind: QuantisationKind) -> np.ndarray:
    """Vectors (N, D) in another number format.

    int8 and uint8 scale each vector by its own largest component, which leaves cosines as they are; uint8 is
    the int8 plus 128. binary and ubinary keep the signs, eight to a byte, shape (N, ceil(D / 8)): ubinary as
    unsigned bytes, binary as those minus 128.

    Raises:
        RequestError: the kind is unknown.
    """
    if kind == "float":
        return vectors.astype(np.float32, copy=False)
    if kind in ("int8", "uint8"):
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        scaled = np.rint(vectors / np.maximum(largest, np.finfo(np.float32).tiny) * _LARGEST).astype(np.int16)
        return scaled.astype(np.int8) if kind == "int8" else (scaled + 128).astype(np.uint8)
    if kind in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=1)
        return bits if kind == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    raise RequestError(f"vectors can be float, int8, uint8, binary or ubinary, not {kind!r}")

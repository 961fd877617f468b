"""Number formats of stored vectors.

Every format is made from one vector alone, so a vector is stored the same in any shard of any job.
"""

from collections.abc import Callable

import numpy as np

from rayembed.embedding.options import VectorFormat

LARGEST_LEVEL = 127
BITS_PER_BYTE = 8


def in_format(vectors: np.ndarray, number_format: VectorFormat) -> np.ndarray:
    """Convert vectors.

    - float32, float16: the numbers themselves.
    - int8: scaled so that the largest number of a vector in absolute value is 127 or -127, then rounded. A
      scale does not change a cosine, so the vectors are compared by it as they are.
    - uint8: int8 plus 128.
    - ubinary: one bit a number, 1 where it is positive; eight in a byte, the first one highest.
    - binary: ubinary minus 128 as int8, as sentence-transformers has it.

    Args:
        vectors: fp32 vectors (N, D), none of them zero.
        number_format: name of the format.

    Returns:
        (N, D), or (N, D / 8 rounded up) of the binary formats.
    """
    return _CONVERSIONS[number_format](vectors)


def bytes_per_vector(dimensions: int, number_format: VectorFormat) -> int:
    """Size of a vector of so many dimensions."""
    return in_format(np.ones((1, dimensions), dtype=np.float32), number_format).nbytes


def _int8(vectors_ND: np.ndarray) -> np.ndarray:
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True)
    return np.rint(vectors_ND * (LARGEST_LEVEL / largest_N1)).astype(np.int8)


def _ubinary(vectors_ND: np.ndarray) -> np.ndarray:
    return np.packbits(vectors_ND > 0, axis=1)


def _shifted(values: np.ndarray, shift: int, dtype: type[np.generic]) -> np.ndarray:
    return (values.astype(np.int16) + shift).astype(dtype)


_CONVERSIONS: dict[VectorFormat, Callable[[np.ndarray], np.ndarray]] = {
    "float32": lambda vectors: vectors.astype(np.float32, copy=False),
    "float16": lambda vectors: vectors.astype(np.float16),
    "int8": _int8,
    "uint8": lambda vectors: _shifted(_int8(vectors), LARGEST_LEVEL + 1, np.uint8),
    "binary": lambda vectors: _shifted(_ubinary(vectors), -LARGEST_LEVEL - 1, np.int8),
    "ubinary": _ubinary,
}

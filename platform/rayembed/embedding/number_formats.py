"""Number formats of stored vectors."""

import numpy as np

from rayembed.embedding.options import VectorFormat
from rayembed.inference.quantisation import quantise


def in_format(vectors: np.ndarray, number_format: VectorFormat) -> np.ndarray:
    """Convert fp32 vectors (N, D), each by itself, so that a vector is stored the same in any shard.

    Returns (N, D), or (N, D / 8 rounded up) of the binary formats (see `quantise`).
    """
    if number_format == "float32" or number_format == "float16":
        return vectors.astype(number_format, copy=False)
    return quantise(vectors, number_format)


def bytes_per_vector(dimensions: int, number_format: VectorFormat) -> int:
    """Size of a vector of so many dimensions."""
    return in_format(np.ones((1, dimensions), dtype=np.float32), number_format).nbytes

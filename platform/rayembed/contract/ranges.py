"""Where the numbers of a model's vectors lie, measured once: what int8 vectors and bits are cut by.

    dimension   low    threshold   high      0.1 of a vector becomes
    0           -0.2   0.05        0.3       bit 1, and in int8 (0.1 + 0.2) / 0.5 * 255 - 128 = 25
    1            0.1   0.2         0.3       bit 0, and in int8 -128

By their signs alone all vectors would have a 1 in dimension 1, which tells nothing apart. int8 is that of
sentence-transformers' `quantize_embeddings` with such ranges, rounded, and numbers outside are cut.

Shapes: N vectors of W dimensions, D of which were measured.
"""

import numpy as np

from rayembed.common.settings import Frozen


class VectorRanges(Frozen):
    """What was measured of a model's vectors, for each of D dimensions.

    Attributes:
        low: smallest number.
        threshold: mean.
        high: largest number.
        length: of the first 1, 2, ... D dimensions of a vector, as the root of the mean square.
    """

    low: tuple[float, ...]
    threshold: tuple[float, ...]
    high: tuple[float, ...]
    length: tuple[float, ...]

    @classmethod
    def of(cls, vectors_ND: np.ndarray) -> "VectorRanges":
        """Measure unit vectors of texts that are like those to come."""
        lengths_D = np.sqrt(np.square(vectors_ND, dtype=np.float64).cumsum(axis=1).mean(axis=0))
        found = (vectors_ND.min(axis=0), vectors_ND.mean(axis=0), vectors_ND.max(axis=0), lengths_D)
        low, threshold, high, length = (tuple(float(f"{value:.5g}") for value in one) for one in found)
        return cls(low=low, threshold=threshold, high=high, length=length)

    def numbers(self, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Low, threshold and high (W) for vectors cut to their first dimensions and scaled to length 1.

        Where the first W dimensions of a vector have a length of about 0.5, cutting doubles its numbers.
        """
        length = max(self.length[width - 1], float(np.finfo(np.float32).tiny))
        low, threshold, high = (
            (np.array(one[:width]) / length).astype(np.float32)
            for one in (self.low, self.threshold, self.high)
        )
        return low, threshold, np.maximum(high, np.nextafter(low, np.float32(np.inf)))

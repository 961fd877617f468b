"""Filters that tell hard negatives from documents that answer the query after all."""

import numpy as np


def below_positive_share(scores: np.ndarray, positive_score: float, share: float) -> np.ndarray:
    """Mask of the candidates to keep: those that score below `share` of the positive's score.

    A candidate that scores as high as the positive is likely to be relevant too. This is "TopK-PercPos" of
    NV-Retriever (Moreira et al., 2024), which recommends a share of 0.95.

    Args:
        scores: [C] similarity of the query to each candidate, not negative.
        positive_score: similarity of the query to its positive.
        share: share of the positive's score, in (0, 1].

    Returns:
        [C] boolean.
    """
    return scores < share * positive_score

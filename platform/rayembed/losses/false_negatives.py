"""Negatives that look right: leaving out candidates that score above the positive by a margin.

Texts that are known to be right are left out by their hash when the batch is made; this is for those that
nobody marked. Shapes: Q queries, N candidates.
Source: arXiv 2506.05176 (Qwen3 Embedding), section 3.1, where the margin is 0.1.
"""

import torch


def without_false_negatives(
    cosines_QN: torch.Tensor, positive_Q1: torch.Tensor, negative_QN: torch.Tensor, margin: float
) -> torch.Tensor:
    """Negatives that score at most `margin` above the query's own positive.

    Args:
        cosines_QN: cosine of each query with each candidate.
        positive_Q1: cosine of each query with its positive.
        negative_QN: True where a candidate is a negative of the query.
        margin: in units of the cosine.

    Returns:
        Boolean tensor (Q, N); no gradient flows through the choice.
    """
    return negative_QN & (cosines_QN.detach() <= positive_Q1.detach() + margin)

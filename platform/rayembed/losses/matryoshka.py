"""Matryoshka: the leading dimensions of a vector are a vector of their own.

Source: arXiv 2205.13147.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def truncated(vectors_ND: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The first `dimensions` of each unit vector, at unit length again: shape (N, dimensions)."""
    if dimensions == vectors_ND.shape[1]:
        return vectors_ND
    return F.normalize(vectors_ND[:, :dimensions], dim=-1)


def matryoshka(
    loss_at: Callable[[int], torch.Tensor], dimensions: Sequence[int], weights: Sequence[float]
) -> torch.Tensor:
    """Weighted sum of a loss over vectors cut to several dimensions.

    Args:
        loss_at: loss of each row (Q) with all vectors cut to the given dimensions; see `truncated`.
        dimensions: where to cut.
        weights: one for each of them.
    """
    parts = [weight * loss_at(cut) for cut, weight in zip(dimensions, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)

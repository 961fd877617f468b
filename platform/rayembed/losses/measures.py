"""What is watched beside the loss; nothing here is differentiated.

Shapes: Q queries, K documents, N vectors, D width.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowMeasures:
    """Cosines of each query.

    Attributes:
        positive_Q: with its positive.
        negative_Q: mean over its negatives; 0 where it has none.
        hardest_Q: with its highest-scoring negative; 0 where it has none.
        correct_Q: whether the positive scored above every negative, if there are any.
        contested_Q: whether the query has negatives.
    """

    positive_Q: torch.Tensor
    negative_Q: torch.Tensor
    hardest_Q: torch.Tensor
    correct_Q: torch.Tensor
    contested_Q: torch.Tensor


@torch.no_grad()
def row_measures(
    query_QD: torch.Tensor, document_KD: torch.Tensor, target_Q: torch.Tensor, allowed_QK: torch.Tensor
) -> RowMeasures:
    """Scores of positives and negatives; arguments as in `rayembed.losses.infonce.infonce`."""
    cosines_QK = query_QD @ document_KD.T
    target_Q1 = target_Q.unsqueeze(1)
    positive_Q = cosines_QK.gather(1, target_Q1).squeeze(1)
    negative_QK = allowed_QK.scatter(1, target_Q1, False)
    count_Q = negative_QK.sum(dim=1)
    contested_Q = count_Q > 0
    hardest_Q = cosines_QK.masked_fill(~negative_QK, float("-inf")).amax(dim=1)
    return RowMeasures(
        positive_Q=positive_Q,
        negative_Q=cosines_QK.masked_fill(~negative_QK, 0.0).sum(dim=1) / count_Q.clamp(min=1),
        hardest_Q=hardest_Q.masked_fill(~contested_Q, 0.0),
        correct_Q=positive_Q > hardest_Q,  # minus infinity without negatives
        contested_Q=contested_Q,
    )


@torch.no_grad()
def uniformity(vectors_ND: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean Gaussian potential of all pairs; lower is more evenly spread over the sphere.

    Source: arXiv 2005.10242, section 4.1.2, with t = 2.
    """
    if len(vectors_ND) < 2:
        return torch.zeros((), device=vectors_ND.device)
    return torch.pdist(vectors_ND.float()).pow(2).mul(-2).exp().mean().log()

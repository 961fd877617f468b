"""Weighing negatives by how hard they are for the model as it is.

Source: arXiv 2503.04812 (LLaVE), equation 5.
"""

import torch


def hardness_penalty(cosines: torch.Tensor, strength: float) -> torch.Tensor:
    """What is added to the logits of negatives, so that one with cosine c weighs exp(strength * c) times.

    Args:
        cosines: cosines of queries with negatives, any shape.
        strength: the source uses 9 for in-batch negatives.

    Returns:
        Tensor of the same shape without gradient.
    """
    return strength * cosines.detach()

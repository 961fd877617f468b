"""SimCSE: a text must find its own second encoding, under another dropout mask, among those of others.

Shapes: Q texts of this rank, B distinct texts of the whole batch, D width.
Source: arXiv 2104.08821, section 3.
"""

import torch

from rayembed.losses.infonce import infonce


def simcse(
    first_QD: torch.Tensor,
    second_BD: torch.Tensor,
    own_Q: torch.Tensor,
    allowed_QB: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Cross entropy of each text's own second encoding against the second encodings of the others.

    Args:
        first_QD: unit vectors of this rank's texts, fp32.
        second_BD: unit vectors of all texts under another dropout mask, fp32.
        own_Q: position of each text among the B second encodings.
        allowed_QB: True where a second encoding competes, the own one included.
        temperature: divisor of the cosine; the source uses 0.05.

    Returns:
        Loss of each text (Q).
    """
    return infonce(first_QD, second_BD, own_Q, allowed_QB, temperature)

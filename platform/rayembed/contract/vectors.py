"""Vectors cut to fewer dimensions: the leading part of a unit vector, at unit length again.

Source: arXiv 2205.13147 (Matryoshka). Shapes: N vectors, D width.
"""

import numpy as np
import torch
import torch.nn.functional as F


def cut(vectors_ND: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The first `dimensions` of each unit vector, scaled to length 1; whole vectors come back as they are."""
    if dimensions == vectors_ND.shape[1]:
        return vectors_ND
    return F.normalize(vectors_ND[:, :dimensions], dim=-1)


def cut_array(vectors_ND: np.ndarray, dimensions: int | None, *, normalize: bool = True) -> np.ndarray:
    """`cut` for arrays; None keeps all dimensions, and `normalize=False` keeps the lengths that are left."""
    if dimensions is None or dimensions == vectors_ND.shape[1]:
        return vectors_ND
    kept = vectors_ND[:, :dimensions]
    if not normalize:
        return kept
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.finfo(np.float32).tiny)

"""Mean pooling.

Shapes: P pooled tokens, N texts, D hidden width.
"""

from typing import Literal

import torch

from rayembed.contract.packing import PackedLengths
from rayembed.model.pooling.base import PoolingHead, PoolingSettings


def mean_by_text(
    states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
) -> torch.Tensor:
    """Mean of the states of each text, summed in fp32 because decoder states hold a few very large values.

    Returns:
        fp32 tensor of shape (N, D).
    """
    counts_N = pooled_lengths.cumulative.diff()
    shape = (counts_N.shape[0], states_PD.shape[1])
    sums_ND = torch.zeros(shape, dtype=torch.float32, device=states_PD.device)
    sums_ND = sums_ND.index_add(0, text_index_P, states_PD.float())
    return sums_ND / counts_N.clamp(min=1).unsqueeze(1)


class MeanPoolingConfig(PoolingSettings):
    """Mean of the pooled tokens' states; no parameters."""

    type: Literal["mean"] = "mean"

    def build(self, hidden_size: int, num_layers: int) -> "MeanPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return MeanPooling()


class MeanPooling(PoolingHead):
    """Mean of the pooled tokens' states; no parameters."""

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised."""
        return mean_by_text(states_PD, text_index_P, pooled_lengths)

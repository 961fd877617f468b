"""Position-weighted mean pooling: later tokens count more.

Source: SGPT, arXiv 2202.08904, section 4.1.1.

Shapes: P pooled tokens, N texts, D hidden width.
"""

from typing import Literal

import torch

from rayembed.contract.packing import PackedLengths
from rayembed.model.pooling.base import PoolingHead, PoolingSettings


class WeightedMeanPoolingConfig(PoolingSettings):
    """Mean with weights that grow linearly along the text; no parameters. Meant for causal attention."""

    type: Literal["weighted_mean"] = "weighted_mean"

    def build(self, hidden_size: int, num_layers: int) -> "WeightedMeanPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return WeightedMeanPooling()


class WeightedMeanPooling(PoolingHead):
    """Mean in which the i-th of a text's L pooled tokens weighs i / (1 + 2 + ... + L); no parameters."""

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised."""
        starts_N, counts_N = pooled_lengths.cumulative[:-1], pooled_lengths.cumulative.diff()
        ranks_P = torch.arange(text_index_P.shape[0], device=text_index_P.device) - starts_N[text_index_P] + 1
        weights_P = ranks_P / (counts_N * (counts_N + 1) / 2)[text_index_P]
        shape = (counts_N.shape[0], states_PD.shape[1])
        sums_ND = torch.zeros(shape, dtype=torch.float32, device=states_PD.device)
        return sums_ND.index_add(0, text_index_P, states_PD.float() * weights_P.unsqueeze(1))

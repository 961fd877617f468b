"""End-token pooling: the state of the last token stands for the text.

Source: E5-Mistral, arXiv 2401.00368, section 3.2.

Shapes: P pooled tokens, N texts, D hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from rayembed.model.pooling.base import PoolingHead, PoolingSettings


class EosPoolingConfig(PoolingSettings):
    """State of the last pooled token, the end token; no parameters."""

    type: Literal["eos"] = "eos"

    def build(self, hidden_size: int, num_layers: int) -> "EosPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return EosPooling()


class EosPooling(PoolingHead):
    """State of the last pooled token: the end token, unless the contract cut it away; no parameters."""

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: Sequence[int]
    ) -> torch.Tensor:
        """Pick the last state of each text; returns fp32 (N, D), not normalised."""
        counts_N = torch.bincount(text_index_P, minlength=len(pooled_lengths))
        return states_PD[counts_N.cumsum(0) - 1].float()

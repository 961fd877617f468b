"""End-token pooling: the state of the last token stands for the text.

Source: E5-Mistral, arXiv 2401.00368, section 3.2.

Shapes: P pooled tokens, N texts, D hidden width.
"""

from typing import Literal

import torch

from rayembed.contract.packing import PackedLengths
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
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pick the last state of each text; returns fp32 (N, D), not normalised."""
        return states_PD.index_select(0, pooled_lengths.cumulative[1:] - 1).float()

"""First-token pooling: the state of the first token, `[CLS]` of BERT, stands for the text.

Source: BERT, arXiv 1810.04805, section 3.2.

Shapes: P pooled tokens, N texts, D hidden width.
"""

from typing import Literal

import torch

from rayembed.contract.packing import PackedLengths
from rayembed.model.pooling.base import PoolingHead, PoolingSettings


class ClsPoolingConfig(PoolingSettings):
    """State of the first token; no parameters. For encoders, with `contract.pool_instruction`."""

    type: Literal["cls"] = "cls"

    def build(self, hidden_size: int, num_layers: int) -> "ClsPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return ClsPooling()


class ClsPooling(PoolingHead):
    """State of the first pooled token; no parameters."""

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pick the first state of each text; returns fp32 (N, D), not normalised."""
        return states_PD.index_select(0, pooled_lengths.cumulative[:-1]).float()

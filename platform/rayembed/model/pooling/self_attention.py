"""Self-attention pooling, the control of NV-Embed's latent block.

The paper's ablation compares with "self-attention" but does not print its computation. Here it is the latent
block with the text's own pooled tokens in place of the latents, all else equal, so that a comparison
shows what the latents add: one pre-norm multi-head attention among the pooled tokens of a text, without mask
and positions, and one pre-norm GEGLU feed-forward, both residual, then the mean.
Source: arXiv 2405.17428, ablation of pooling types.

Shapes: P pooled tokens, N texts, D hidden width, H heads, W width of a head.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rayembed.contract.packing import PackedLengths
from rayembed.model.attention import packed_attention
from rayembed.model.pooling.base import PoolingHead, PoolingSettings
from rayembed.model.pooling.blocks import CrossAttention, FeedForward, HeadWidth, Init, start_as_identity
from rayembed.model.pooling.mean import mean_by_text


class SelfAttentionPoolingConfig(PoolingSettings):
    """Attention among a text's own pooled tokens; sizes as in the latent block."""

    type: Literal["self_attention"] = "self_attention"
    num_heads: int = Field(8, ge=1, description="heads of the attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )
    init: Init = "residual"

    def build(self, hidden_size: int, num_layers: int) -> "SelfAttentionPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return SelfAttentionPooling(self, hidden_size)


class SelfAttentionPooling(PoolingHead):
    """Attention among the pooled tokens of a text and a feed-forward, both residual, then their mean."""

    def __init__(self, config: SelfAttentionPoolingConfig, hidden_size: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = CrossAttention(hidden_size, config.num_heads, config.head_width or hidden_size)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.feedforward = FeedForward(hidden_size, config.feedforward_multiplier)
        if config.init == "residual":
            start_as_identity(self.attention, self.feedforward)

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised."""
        normed_1PD = self.attention_norm(states_PD).unsqueeze(0)
        query_1HPW, key_1HPW, value_1HPW = self.attention.project(normed_1PD, normed_1PD)
        attended_PHW = packed_attention(
            query_1HPW[0],
            key_1HPW[0],
            value_1HPW[0],
            pooled_lengths,
            scaling=query_1HPW.shape[-1] ** -0.5,
        )
        states_PD = states_PD + self.attention.to_out(attended_PHW.flatten(1))
        states_PD = states_PD + self.feedforward(self.feedforward_norm(states_PD))
        return mean_by_text(states_PD, text_index_P, pooled_lengths)

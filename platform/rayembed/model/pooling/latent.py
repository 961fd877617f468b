"""Latent-attention pooling of NV-Embed.

The tokens are the queries; trainable latents are the keys and values. Parameter names follow the published
checkpoint below its `latent_attention_model.` prefix.
Source: arXiv 2405.17428, section 3.1, and the published NV-Embed-v2 model file, which the computation follows
where the paper's prose is shorter.

Shapes: P pooled tokens, N texts, D hidden width, Z latents.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rayembed.model.pooling.base import PoolingHead, PoolingSettings
from rayembed.model.pooling.blocks import (
    CrossAttention,
    FeedForward,
    HeadWidth,
    Init,
    PreNorm,
    start_as_identity,
)
from rayembed.model.pooling.mean import mean_by_text


class LatentPoolingConfig(PoolingSettings):
    """Latent-attention pooling. The defaults are NV-Embed's, whose heads are as wide as the backbone.

    The published block holds 9.4 % of NV-Embed's parameters. Its size grows with the square of the width
    and ignores the depth, so that a shallow backbone would get a head out of proportion: a quarter of the
    whole model at width 576 and 4 layers. `scaled` is the rule for backbones of another size than Mistral-7B.
    It keeps the head at 5 to 10 % of the whole model, and gives the published numbers for Mistral-7B.
    docs/models.md has the table.
    """

    type: Literal["latent"] = "latent"
    num_latents: int = Field(512, ge=1, description="number of trainable latent vectors")
    num_heads: int = Field(8, ge=1, description="heads of the cross attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )
    init: Init = "residual"

    @classmethod
    def scaled(cls, hidden_size: int, num_layers: int) -> "LatentPoolingConfig":
        """Sizes for a backbone: a latent for every 8 units of width, inner widths in proportion to its depth.

        A depth of 32 layers or more gets the published inner widths, 8 heads of the hidden size and a
        feed-forward of 4 times the hidden size; fewer layers get their share of both.
        """
        depth = min(num_layers / 32, 1)
        return cls(
            num_latents=max(hidden_size // 8, 16),
            num_heads=8,
            head_width=max(round(hidden_size * depth / 8), 1) * 8,
            feedforward_multiplier=max(round(4 * depth), 1),
        )

    def build(self, hidden_size: int, num_layers: int) -> "LatentAttentionPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return LatentAttentionPooling(self, hidden_size)


class LatentAttentionPooling(PoolingHead):
    """Cross attention to latents and a feed-forward, both residual, then the mean over the pooled tokens."""

    def __init__(self, config: LatentPoolingConfig, hidden_size: int):
        super().__init__()
        attention = CrossAttention(hidden_size, config.num_heads, config.head_width or hidden_size)
        feedforward = FeedForward(hidden_size, config.feedforward_multiplier)
        self.latents = nn.Parameter(torch.randn(config.num_latents, hidden_size))
        self.cross_attend_blocks = nn.ModuleList(
            [
                PreNorm(hidden_size, attention, has_context=True),
                PreNorm(hidden_size, feedforward, has_context=False),
            ]
        )
        if config.init == "residual":
            start_as_identity(attention, feedforward)

    def token_states(self, states_PD: torch.Tensor) -> torch.Tensor:
        """States after both residual blocks, before pooling; same shape."""
        attend, transform = self.cross_attend_blocks
        states_PD = states_PD + attend(states_PD.unsqueeze(0), self.latents.unsqueeze(0)).squeeze(0)
        return states_PD + transform(states_PD)

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: Sequence[int]
    ) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised.

        The block works token by token, so tokens that are not pooled need not enter it.
        """
        return mean_by_text(self.token_states(states_PD), text_index_P, len(pooled_lengths))

"""Latent-attention pooling of NV-Embed.

The tokens are the queries; trainable latents are the keys and values. Parameter names follow the published
checkpoint below its `latent_attention_model.` prefix.
Source: arXiv 2405.17428, section 3.1, and the published NV-Embed-v2 model file, which the computation follows
where the paper's prose is shorter.

Shapes: P pooled tokens, N texts, D hidden width, Z latents.
"""

from collections.abc import Sequence

import torch
from torch import nn

from rayembed.model.configuration import LatentPoolingConfig
from rayembed.model.pooling.base import PoolingHead
from rayembed.model.pooling.blocks import CrossAttention, FeedForward, PreNorm, start_as_identity
from rayembed.model.pooling.mean import mean_by_text


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

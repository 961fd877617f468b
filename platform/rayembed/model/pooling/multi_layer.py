"""Multi-layer trainable pooling: latents read one summary of every layer.

Each layer's pooled tokens are averaged into one vector, a learned layer embedding is added, and trainable
latents attend to these K vectors; a feed-forward and the mean over the latents follow. The direction is the
opposite of NV-Embed's: latents are the queries, layers the keys and values. Norms and residuals, which the
source's prose leaves open, are those of the latent block.
Source: Pooling and Attention, arXiv 2409.02727, section on multi-layer trainable pooling.

Shapes: K layers, P pooled tokens, N texts, D hidden width, Z latents.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rayembed.contract.packing import PackedLengths
from rayembed.model.pooling.base import PoolingHead, PoolingSettings
from rayembed.model.pooling.blocks import CrossAttention, FeedForward, HeadWidth, PreNorm
from rayembed.model.pooling.mean import mean_by_text


class MultiLayerPoolingConfig(PoolingSettings):
    """Latents that attend to one summary of every layer. The defaults are the source's at width 4096."""

    type: Literal["multi_layer"] = "multi_layer"
    num_latents: int = Field(768, ge=1, description="number of trainable latent vectors")
    num_heads: int = Field(32, ge=1, description="heads of the cross attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: half of the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )

    def build(self, hidden_size: int, num_layers: int) -> "MultiLayerPooling":
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
        return MultiLayerPooling(self, hidden_size, num_layers)


class MultiLayerPooling(PoolingHead):
    """Cross attention of latents to the mean states of all layers, feed-forward, mean over the latents."""

    all_layers = True

    def __init__(self, config: MultiLayerPoolingConfig, hidden_size: int, num_layers: int):
        super().__init__()
        head_width = config.head_width or max(hidden_size // 2, 1)
        self.layer_embeddings = nn.Parameter(torch.zeros(num_layers, hidden_size))
        self.latents = nn.Parameter(torch.randn(config.num_latents, hidden_size))
        self.attend = PreNorm(
            hidden_size, CrossAttention(hidden_size, config.num_heads, head_width), has_context=True
        )
        self.transform = PreNorm(
            hidden_size, FeedForward(hidden_size, config.feedforward_multiplier), has_context=False
        )

    def forward(
        self, states_KPD: Sequence[torch.Tensor], text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pool the states of all layers; returns fp32 (N, D), not normalised."""
        means_NKD = torch.stack(
            [mean_by_text(states_PD, text_index_P, pooled_lengths) for states_PD in states_KPD], dim=1
        )
        context_NKD = means_NKD.to(self.latents.dtype) + self.layer_embeddings
        latents_NZD = self.latents + self.attend(self.latents.unsqueeze(0), context_NKD)
        latents_NZD = latents_NZD + self.transform(latents_NZD)
        return latents_NZD.float().mean(dim=1)

"""Latent-attention pooling of NV-Embed.

The tokens are the queries; trainable latents are the keys and values. Parameter names follow the published
checkpoint below its `latent_attention_model.` prefix.
Source: arXiv 2405.17428, section 3.1, and the published NV-Embed-v2 model file, which the computation follows
where the paper's prose is shorter.

Shapes: P pooled tokens, N texts, D hidden width, Z latents.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from rayembed.contract.packing import PackedLengths
from rayembed.model.pooling.base import PoolingHead, PoolingSettings
from rayembed.model.pooling.blocks import (
    CrossAttention,
    FeedForward,
    Folded,
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
        self._folded: tuple[list[tuple], Folded] | None = None
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
        states_PD = states_PD + self._attended(states_PD)
        return states_PD + self.cross_attend_blocks[1](states_PD)

    def _attended(self, states_PD: torch.Tensor) -> torch.Tensor:
        """Answers of the latents. Without a gradient to take, the latents are folded once for all passes."""
        attend: Any = self.cross_attend_blocks[0]
        once = not (self.training or torch.is_grad_enabled())
        if once and attend.fn.folding_pays_from(len(self.latents)) < math.inf:
            return attend.fn.read(attend.norm(states_PD).unsqueeze(0), self._folded_latents()).squeeze(0)
        return attend(states_PD.unsqueeze(0), self.latents.unsqueeze(0)).squeeze(0)

    def _folded_latents(self) -> Folded:
        """The folded latents, computed again when a weight that they come from has changed."""
        attend: Any = self.cross_attend_blocks[0]
        if torch.compiler.is_exporting():  # a runtime computes what depends on no input once
            return attend.fn.fold(attend.norm_context(self.latents))
        weights = [self.latents, *attend.norm_context.parameters(), *attend.fn.parameters()]
        # Inference tensors count no versions.
        state = [(w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version) for w in weights]
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, attend.fn.fold(attend.norm_context(self.latents)))
        return self._folded[1]

    def train(self, mode: bool = True) -> "LatentAttentionPooling":
        """Forget the folded latents: DeepSpeed moves weights past the counter of their versions."""
        self._folded = None
        return super().train(mode)

    def forward(
        self, states_PD: torch.Tensor, text_index_P: torch.Tensor, pooled_lengths: PackedLengths
    ) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised.

        The block works token by token, so tokens that are not pooled need not enter it.
        """
        return mean_by_text(self.token_states(states_PD), text_index_P, pooled_lengths)

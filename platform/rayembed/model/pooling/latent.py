"""Latent-attention pooling of NV-Embed.

The tokens are the queries; trainable latents are the keys and values. Parameter names follow the published
checkpoint below its `latent_attention_model.` prefix.
Source: arXiv 2405.17428, section 3.1, and the published NV-Embed-v2 model file, which the computation follows
where the paper's prose is shorter.

Shapes: P pooled tokens, N texts, D hidden width, Z latents, H heads, W width of a head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rayembed.model.configuration import LatentPoolingConfig
from rayembed.model.pooling.mean import mean_by_text


class CrossAttention(nn.Module):
    """Multi-head attention of tokens over latents; no mask, no dropout, no biases."""

    def __init__(self, hidden_size: int, num_heads: int, head_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, num_heads * head_width, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * num_heads * head_width, bias=False)
        self.to_out = nn.Linear(num_heads * head_width, hidden_size, bias=False)

    def forward(self, tokens_PD: torch.Tensor, latents_ZD: torch.Tensor) -> torch.Tensor:
        """Attend from each token to all latents; returns (P, D)."""
        query_PHW = self.to_q(tokens_PD).unflatten(-1, (self.num_heads, -1))
        key_ZHW, value_ZHW = (
            part.unflatten(-1, (self.num_heads, -1)) for part in self.to_kv(latents_ZD).chunk(2, dim=-1)
        )
        attended_HPW = F.scaled_dot_product_attention(
            query_PHW.transpose(0, 1)[None], key_ZHW.transpose(0, 1)[None], value_ZHW.transpose(0, 1)[None]
        )[0]
        return self.to_out(attended_HPW.transpose(0, 1).flatten(1))


class GatedGelu(nn.Module):
    """GEGLU: the first half of the width times the exact GELU of the second half."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Halve the last dimension."""
        values, gates = states.chunk(2, dim=-1)
        return values * F.gelu(gates)


class FeedForward(nn.Module):
    """Linear, GEGLU, linear, all with biases."""

    def __init__(self, hidden_size: int, multiplier: int):
        super().__init__()
        inner = hidden_size * multiplier
        self.net = nn.Sequential(
            nn.Linear(hidden_size, 2 * inner), GatedGelu(), nn.Linear(inner, hidden_size)
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Token-wise transformation of the same shape."""
        return self.net(states)


class PreNorm(nn.Module):
    """A sub-layer behind LayerNorm; `norm_context` normalises the latents where there are any."""

    def __init__(self, hidden_size: int, sublayer: nn.Module, *, has_context: bool):
        super().__init__()
        self.fn = sublayer
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_context = nn.LayerNorm(hidden_size) if has_context else None

    def forward(self, states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise, then apply the sub-layer."""
        if self.norm_context is None:
            return self.fn(self.norm(states))
        return self.fn(self.norm(states), self.norm_context(context))


class LatentAttentionPooling(nn.Module):
    """Cross attention to latents and a feed-forward, both residual, then the mean over the pooled tokens."""

    def __init__(self, config: LatentPoolingConfig, hidden_size: int):
        super().__init__()
        head_width = config.head_width or hidden_size
        attention = CrossAttention(hidden_size, config.num_heads, head_width)
        feedforward = FeedForward(hidden_size, config.feedforward_multiplier)
        self.latents = nn.Parameter(torch.randn(config.num_latents, hidden_size))
        self.cross_attend_blocks = nn.ModuleList(
            [
                PreNorm(hidden_size, attention, has_context=True),
                PreNorm(hidden_size, feedforward, has_context=False),
            ]
        )
        if config.init == "residual":
            nn.init.zeros_(attention.to_out.weight)
            for parameter in feedforward.net[2].parameters():
                nn.init.zeros_(parameter)

    def token_states(self, states_PD: torch.Tensor) -> torch.Tensor:
        """States after both residual blocks, before pooling; same shape."""
        attend, transform = self.cross_attend_blocks
        states_PD = states_PD + attend(states_PD, self.latents)
        return states_PD + transform(states_PD)

    def forward(self, states_PD: torch.Tensor, text_index_P: torch.Tensor, num_texts: int) -> torch.Tensor:
        """Pool the states of the pooled tokens; returns fp32 (N, D), not normalised.

        The block works token by token, so tokens that are not pooled need not enter it.
        """
        return mean_by_text(self.token_states(states_PD), text_index_P, num_texts)

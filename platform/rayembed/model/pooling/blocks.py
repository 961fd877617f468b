"""Attention and feed-forward blocks that the trainable heads are made of.

Parameter names follow the published NV-Embed checkpoint.

Shapes: N sequences, Q queries, C context vectors, D hidden width, H heads, W width of a head.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

HeadWidth = Annotated[int | None, Field(ge=1)]
Init = Annotated[
    Literal["residual", "published"],
    Field(
        description="residual starts both output projections at zero, so that training starts from mean "
        "pooling; published leaves them at the framework's random values"
    ),
]


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a context; no mask, no dropout, no biases."""

    def __init__(self, hidden_size: int, num_heads: int, head_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, num_heads * head_width, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * num_heads * head_width, bias=False)
        self.to_out = nn.Linear(num_heads * head_width, hidden_size, bias=False)

    def project(
        self, queries_NQD: torch.Tensor, context_NCD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (N, H, Q, W), keys and values (N, H, C, W)."""
        tensors = (self.to_q(queries_NQD), *self.to_kv(context_NCD).chunk(2, dim=-1))
        query, key, value = (tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tensor in tensors)
        return query, key, value

    def forward(self, queries_NQD: torch.Tensor, context_NCD: torch.Tensor) -> torch.Tensor:
        """Attend from each query to the whole context; either N may be 1. Returns (N, Q, D)."""
        query_NHQW, key_NHCW, value_NHCW = self.project(queries_NQD, context_NCD)
        shape = (max(len(query_NHQW), len(key_NHCW)), -1, -1, -1)
        attended_NHQW = F.scaled_dot_product_attention(
            query_NHQW.expand(shape), key_NHCW.expand(shape), value_NHCW.expand(shape)
        )
        return self.to_out(attended_NHQW.transpose(1, 2).flatten(2))


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
    """A sub-layer behind LayerNorm; `norm_context` normalises the context where there is one."""

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


def start_as_identity(attention: CrossAttention, feedforward: FeedForward) -> None:
    """Zero both output projections, so that residual blocks pass their input through at first."""
    for parameter in (attention.to_out.weight, *feedforward.net[2].parameters()):
        nn.init.zeros_(parameter)

"""Attention and feed-forward blocks that the trainable heads are made of.

Parameter names follow the published NV-Embed checkpoint.

Shapes: N sequences, Q queries, C context vectors, D hidden width, H heads, W width of a head, A = H W.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

Folded = tuple[torch.Tensor, torch.Tensor]
HeadWidth = Annotated[int | None, Field(ge=1)]
Init = Annotated[
    Literal["residual", "published"],
    Field(
        description="residual starts both output projections at zero, so that training starts from mean "
        "pooling; published leaves them at the framework's random values"
    ),
]


class HeadProjection(nn.Linear):
    """Projection from the hidden width into all heads, or from all heads back (`outwards`); no bias.

    Both uses of the weight go through `forward`, where ZeRO 3 gathers it.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_width: int, *, outwards: bool):
        sizes = (num_heads * head_width, hidden_size) if outwards else (hidden_size, num_heads * head_width)
        super().__init__(*sizes, bias=False)
        self.num_heads, self.outwards = num_heads, outwards

    def forward(self, states: torch.Tensor, *, by_head: bool = False) -> torch.Tensor:
        """Project the last axis. With `by_head`, bring vectors of each head (H, C, W) to the hidden width."""
        if not by_head:
            return super().forward(states)
        weight_AD = self.weight.T if self.outwards else self.weight
        return states @ weight_AD.unflatten(0, (self.num_heads, -1))


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a context; no mask, no dropout, no biases.

    A context that is the same for all queries can be folded into the weights around it. A head scores query x
    against context vector c as ``(Wq x) . (Wk c)``, which is ``x . (Wq^T Wk c)``, and answers with the
    weighted sum of ``Wo Wv c``. Both brackets hold no query, so they are computed once. One query then costs
    2 H C D multiply-adds instead of 2 H W (D + C): 9 times fewer at NV-Embed's sizes, where the tensors of
    width H W = 32,768 go away too.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = HeadProjection(hidden_size, num_heads, head_width, outwards=False)
        self.to_kv = nn.Linear(hidden_size, 2 * num_heads * head_width, bias=False)
        self.to_out = HeadProjection(hidden_size, num_heads, head_width, outwards=True)

    def project(
        self, queries_NQD: torch.Tensor, context_NCD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (N, H, Q, W), keys and values (N, H, C, W)."""
        key_value = self.to_kv(context_NCD).chunk(2, dim=-1)
        tensors = (self.to_q(queries_NQD), *key_value)
        query, key, value = (tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tensor in tensors)
        return query, key, value

    def forward(self, queries_NQD: torch.Tensor, context_NCD: torch.Tensor) -> torch.Tensor:
        """Attend from each query to the whole context; either N may be 1. Returns (N, Q, D).

        One context for many queries is folded where that saves work.
        """
        pays_from = self.folding_pays_from(context_NCD.shape[1])
        may_pay = context_NCD.shape[0] == 1 and pays_from < float("inf")
        if may_pay and queries_NQD.shape[0] * queries_NQD.shape[1] >= pays_from:
            return self.read(queries_NQD, self.fold(context_NCD[0]))
        return self.attend_plainly(queries_NQD, context_NCD)

    def attend_plainly(self, queries_NQD: torch.Tensor, context_NCD: torch.Tensor) -> torch.Tensor:
        """`forward` without folding."""
        query_NHQW, key_NHCW, value_NHCW = self.project(queries_NQD, context_NCD)
        shape = (max(query_NHQW.shape[0], key_NHCW.shape[0]), -1, -1, -1)
        attended_NHQW = F.scaled_dot_product_attention(
            query_NHQW.expand(shape), key_NHCW.expand(shape), value_NHCW.expand(shape)
        )
        return self.to_out(attended_NHQW.transpose(1, 2).flatten(2))

    def folding_pays_from(self, context: int) -> float:
        """Queries from which folding `context` vectors and reading them costs less than attending plainly.

        Folding costs 2 H C D W multiply-adds, and every query saves 2 H (W (D + C) - C D). The gradient costs
        twice as much on both sides. 512 queries at NV-Embed's sizes; infinite where nothing is saved.
        """
        hidden, width = self.to_q.in_features, self.to_q.out_features // self.num_heads
        saved = width * (hidden + context) - context * hidden
        return context * hidden * width / saved if saved > 0 else float("inf")

    def fold(self, context_CD: torch.Tensor) -> Folded:
        """What queries are scored against and what answers them, both (H, C, D)."""
        key_CA, value_CA = self.to_kv(context_CD).chunk(2, dim=-1)
        key_HCW, value_HCW = (
            tensor.unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for tensor in (key_CA, value_CA)
        )
        scored_HCD = self.to_q(key_HCW * key_HCW.shape[-1] ** -0.5, by_head=True)
        return scored_HCD, self.to_out(value_HCW, by_head=True)

    def read(self, queries_NQD: torch.Tensor, folded: Folded) -> torch.Tensor:
        """Attend from each query to a folded context. Returns (N, Q, D)."""
        scored_HCD, answer_HCD = folded
        scores_NQHC = F.linear(queries_NQD, scored_HCD.flatten(0, 1)).unflatten(-1, scored_HCD.shape[:2])
        return scores_NQHC.softmax(dim=-1).flatten(2) @ answer_HCD.flatten(0, 1)


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

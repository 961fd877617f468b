"""Attention over packed texts; a backbone has it as transformers' attention `rayembed_packed`.

A packed batch is one row of T tokens. Attending over the whole row behind a block mask would cost T x T. On a
GPU torch's variable-length attention takes the row as it is. Elsewhere, in fp32 and with dropout on the
weights, texts of equal length, which the packing puts side by side, are cut out, attended as one small batch
and put back.

Shapes: H query heads, G key and value heads, T tokens, W width of a head, n texts of equal length L.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

from rayembed.contract.packing import PackedLengths

PACKED_ATTENTION = "rayembed_packed"
LONGEST_PLAIN_TEXT = 96  # tokens; see `_plain_may_be_faster`
WIDEST_VARLEN_HEAD = 256  # limit of FlashAttention, which computes it

PositionBias = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class PaddedLengths(PackedLengths):
    """A row of n texts padded to L tokens each, for graphs that are written before lengths are known.

    Attributes:
        texts: empty, as lengths are not known.
        seen_nLL: whether a token sees another of its text.
    """

    seen_nLL: torch.Tensor


def packed_attention(
    query_HTW: torch.Tensor,
    key_GTW: torch.Tensor,
    value_GTW: torch.Tensor,
    lengths: PackedLengths,
    *,
    scaling: float,
    causal: bool = False,
    dropout: float = 0.0,
    window: int | None = None,
    bias: PositionBias | None = None,
) -> torch.Tensor:
    """Each token attends to the tokens of its own text only.

    Args:
        query_HTW: queries of all heads.
        key_GTW: keys; H is a multiple of G.
        value_GTW: values.
        lengths: tokens of each text in packed order.
        scaling: factor on the scores.
        causal: whether a token sees only itself and what comes before it in its text.
        dropout: dropout on the attention weights.
        window: tokens on each side that a token sees, or before it with `causal`; None: all.
        bias: what is added to the scores of a text, by its length. Not together with `causal`.

    Returns:
        Attended values, shape (T, H, W). Those of padding mean nothing but are finite.
    """
    assert not causal or bias is None, "a causal mask with a bias"
    mask = partial(_mask, window, bias, query_HTW.device, causal)
    if isinstance(lengths, PaddedLengths):
        return _attend_padded(query_HTW, key_GTW, value_GTW, lengths, mask, scaling=scaling, causal=causal)
    if bias is None and _varlen_is_possible(query_HTW, dropout):
        return _attend_varlen(
            query_HTW, key_GTW, value_GTW, lengths, scaling=scaling, causal=causal, window=window
        )
    return _attend_grouped(
        query_HTW, key_GTW, value_GTW, lengths, mask, scaling=scaling, causal=causal, dropout=dropout
    )


def _mask(
    window: int | None, bias: PositionBias | None, device: torch.device, causal: bool, length: int
) -> torch.Tensor | None:
    """Addition to the scores (H, L, L), or whether a token sees another (L, L), of a text of L tokens.

    With a window of 1, the second of four tokens sees the first three, or with `causal` the first two. None:
    all, or with `causal` all before it.
    """
    if bias is not None:
        return bias(length)
    if window is None or (isinstance(length, int) and length <= window + 1):  # a graph's is a symbol
        return None
    places = torch.arange(length, device=device)
    before = places[:, None] - places
    return (before <= window) & (before >= (0 if causal else -window))


def _varlen_is_possible(query_HTW: torch.Tensor, dropout: float) -> bool:
    """Whether torch's variable-length kernel takes these tensors: 16 bits on CUDA, and no dropout inside."""
    fits = query_HTW.dtype in (torch.bfloat16, torch.float16) and query_HTW.shape[-1] <= WIDEST_VARLEN_HEAD
    return query_HTW.is_cuda and fits and not dropout


def _attend_varlen(
    query_HTW: torch.Tensor,
    key_GTW: torch.Tensor,
    value_GTW: torch.Tensor,
    lengths: PackedLengths,
    *,
    scaling: float,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """The whole row in one kernel; padding behind the last text counts as a text of its own."""
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler: 1.3 s, on GPUs alone

    before = -1 if window is None else window
    attended = varlen_attn(
        query_HTW.transpose(0, 1),
        key_GTW.transpose(0, 1),
        value_GTW.transpose(0, 1),
        lengths.cumulative,
        lengths.cumulative,
        lengths.longest,
        lengths.longest,
        scale=scaling,
        window_size=(before, 0 if causal else before),
        enable_gqa=query_HTW.shape[0] != key_GTW.shape[0],
    )
    assert isinstance(attended, torch.Tensor)
    return attended


def _attend_grouped(
    query_HTW: torch.Tensor,
    key_GTW: torch.Tensor,
    value_GTW: torch.Tensor,
    lengths: PackedLengths,
    mask: Callable[[int], torch.Tensor | None] = lambda _: None,
    *,
    scaling: float,
    causal: bool,
    dropout: float,
) -> torch.Tensor:
    """Texts of equal length together; padding behind the last text gets zeros."""
    groups = [(length, len(list(texts))) for length, texts in groupby(lengths.texts)]
    # One split a tensor: its backward is one concatenation, where slicing would add up a tensor of T tokens a
    # group.
    spans = [*(length * count for length, count in groups), lengths.padding]
    parts = zip(*(tensor.split(spans, dim=1) for tensor in (query_HTW, key_GTW, value_GTW)), strict=True)
    plain_up_to = LONGEST_PLAIN_TEXT if _plain_may_be_faster(query_HTW) else 0
    pieces = []
    for (length, count), group in zip(groups, parts, strict=False):
        query, key, value = (part.unflatten(1, (count, length)).transpose(0, 1) for part in group)
        attend = _attend_plainly if length <= plain_up_to else _attend_fused
        seen = mask(length)
        attended_nHLW = attend(
            query, key, value, seen, scaling=scaling, causal=causal and seen is None, dropout=dropout
        )
        pieces.append(attended_nHLW.transpose(1, 2).flatten(0, 1))
    if lengths.padding:
        pieces.append(pieces[0].new_zeros(lengths.padding, *pieces[0].shape[1:]))
    return torch.cat(pieces)


def _attend_padded(
    query_HTW: torch.Tensor,
    key_GTW: torch.Tensor,
    value_GTW: torch.Tensor,
    lengths: PaddedLengths,
    mask: Callable[[int], torch.Tensor | None],
    *,
    scaling: float,
    causal: bool,
) -> torch.Tensor:
    """Texts of one length under a mask. A token always sees itself, so that no row of padding is empty."""
    count, length = lengths.seen_nLL.shape[:2]
    copies = query_HTW.shape[0] // key_GTW.shape[0]  # of keys and values: OpenVINO knows no groups
    tensors = (query_HTW, key_GTW.repeat_interleave(copies, 0), value_GTW.repeat_interleave(copies, 0))
    query, key, value = (tensor.unflatten(1, (count, length)).transpose(0, 1) for tensor in tensors)
    seen_nLL = lengths.seen_nLL.tril() if causal else lengths.seen_nLL
    among = mask(length)
    if among is not None and among.dtype is torch.bool:
        seen_nLL, among = seen_nLL & among, None
    seen_n1LL = (seen_nLL | torch.eye(length, dtype=torch.bool, device=query.device)).unsqueeze(1)
    if among is not None:
        seen_n1LL = torch.where(seen_n1LL, among, float("-inf"))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_n1LL, scale=scaling)
    return attended.transpose(1, 2).flatten(0, 1)


def _plain_may_be_faster(query: torch.Tensor) -> bool:
    """Whether attention will be differentiated in bf16 on a CPU.

    There the backward of the fused kernel is slow on short texts: up to 64 tokens it took 1.6 to 7.7 times as
    long as matrix products, from 128 tokens on 0.8 times (benchmarks/attention_cpu.py and its results).
    """
    return query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.requires_grad


def _attend_fused(
    query_nHLW: torch.Tensor,
    key_nGLW: torch.Tensor,
    value_nGLW: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scaling: float,
    causal: bool,
    dropout: float,
) -> torch.Tensor:
    """Attention of n texts of one length by the fused kernel."""
    return F.scaled_dot_product_attention(
        query_nHLW,
        key_nGLW,
        value_nGLW,
        attn_mask=mask if mask is None or mask.dtype is torch.bool else mask.to(query_nHLW.dtype),
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query_nHLW.shape[1] != key_nGLW.shape[1],
    )


def _attend_plainly(
    query_nHLW: torch.Tensor,
    key_nGLW: torch.Tensor,
    value_nGLW: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scaling: float,
    causal: bool,
    dropout: float,
) -> torch.Tensor:
    """The same by matrix products; query heads that share a key head are stacked, no key is copied."""
    heads, groups, length = query_nHLW.shape[1], key_nGLW.shape[1], query_nHLW.shape[2]
    stacked = (query_nHLW * scaling).unflatten(1, (groups, heads // groups)).flatten(2, 3)
    scores = stacked @ key_nGLW.transpose(-1, -2)
    if mask is not None:
        stacks = scores.unflatten(2, (heads // groups, length))
        if mask.dtype is torch.bool:
            stacks = stacks.masked_fill(~mask, float("-inf"))
        else:
            stacks = stacks + mask.unflatten(0, (groups, heads // groups))
        scores = stacks.flatten(2, 3)
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future.repeat(heads // groups, 1), float("-inf"))
    weights = F.dropout(torch.softmax(scores, dim=-1), p=dropout)
    return (weights @ value_nGLW).unflatten(2, (heads // groups, length)).flatten(1, 2)


def packed_attention_interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    packed_lengths: PackedLengths,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Adapter to transformers' attention signature; tensors are (1, heads, T, width).

    No mask is materialised. Rotary products may come in fp32 (see `mixed_precision`); attention computes in
    the format of the values. `sliding_window` is that of ModernBERT and Gemma, which counts the token itself;
    other decoders have none (see `backbone`).
    """
    assert attention_mask is None, "packed attention takes lengths, not a mask"
    config = module.config
    is_gemma_turned = getattr(config, "use_bidirectional_attention", False)
    attended_THW = packed_attention(
        query[0].to(value.dtype),
        key[0].to(value.dtype),
        value[0],
        packed_lengths,
        scaling=scaling,
        causal=getattr(config, "is_causal", True) and not is_gemma_turned,
        dropout=dropout,
        window=None if sliding_window is None else sliding_window - 1,
    )
    return attended_THW.unsqueeze(0), None

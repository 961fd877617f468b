"""Several texts laid end to end in one row of tokens, without padding.

Shapes: T tokens of all texts, N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rayembed.contract import TokenizedTexts


@dataclass(frozen=True)
class PackedBatch:
    """N texts as one row of T tokens, longest text first.

    Attributes:
        input_ids_T: token ids.
        position_ids_T: position of each token in its own text.
        text_index_T: which of the N packed texts each token belongs to.
        pooled_T: whether each token takes part in pooling.
        lengths: tokens of each packed text, descending, as plain numbers so that attention can group texts
            without asking the device.
        pooled_lengths: pooled tokens of each packed text.
        order_N: order_N[i] is the position in the packed batch of the i-th text given.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    text_index_T: torch.Tensor
    pooled_T: torch.Tensor
    lengths: tuple[int, ...]
    pooled_lengths: tuple[int, ...]
    order_N: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Copy with all tensors on `device`."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device, non_blocking=True),
            position_ids_T=self.position_ids_T.to(device, non_blocking=True),
            text_index_T=self.text_index_T.to(device, non_blocking=True),
            pooled_T=self.pooled_T.to(device, non_blocking=True),
            order_N=self.order_N.to(device, non_blocking=True),
        )


def pack(tokenized: TokenizedTexts) -> PackedBatch:
    """Lay the texts end to end, sorted by length so that equal lengths are neighbours."""
    return pack_ids(tokenized.input_ids, tokenized.pool_starts)


def pack_ids(input_ids: Sequence[Sequence[int]], pool_starts: Sequence[int]) -> PackedBatch:
    """`pack` for plain lists: token ids and number of leading unpooled positions of each text."""
    lengths = torch.tensor([len(ids) for ids in input_ids])
    packed_to_given = torch.argsort(lengths, descending=True, stable=True)
    order_N = torch.empty_like(packed_to_given)
    order_N[packed_to_given] = torch.arange(len(input_ids))
    lengths_N = lengths[packed_to_given]
    starts_N = torch.cumsum(lengths_N, 0) - lengths_N
    text_index_T = torch.repeat_interleave(torch.arange(len(input_ids)), lengths_N)
    position_ids_T = torch.arange(int(lengths_N.sum())) - starts_N[text_index_T]
    pool_starts_N = torch.as_tensor(pool_starts)[packed_to_given]
    input_ids_T = torch.tensor([token for text in packed_to_given.tolist() for token in input_ids[text]])
    pooled_T = position_ids_T >= pool_starts_N[text_index_T]
    pooled_lengths_N = (lengths_N - pool_starts_N).clamp(min=0)
    return PackedBatch(
        input_ids_T,
        position_ids_T,
        text_index_T,
        pooled_T,
        tuple(lengths_N.tolist()),
        tuple(pooled_lengths_N.tolist()),
        order_N,
    )

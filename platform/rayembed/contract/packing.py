"""Several texts laid end to end in one row of tokens, without padding.

Shapes: T tokens of all texts, P of them pooled, N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from rayembed.contract import TokenizedTexts


@dataclass(frozen=True)
class PackedLengths:
    """How long the texts of a packed row are.

    Attributes:
        texts: tokens of each text in packed order, as plain numbers so that attention can group texts without
            asking the device.
        padding: tokens behind the last text that belong to none.
        cumulative: int32 tensor of the positions at which a text begins, then those where the last text and
            the padding end.
    """

    texts: tuple[int, ...]
    padding: int
    cumulative: torch.Tensor

    @classmethod
    def of(cls, texts: Sequence[int], padding: int = 0) -> "PackedLengths":
        """Lengths of a row with `padding` tokens behind its texts."""
        spans = [0, *texts, *([padding] if padding else [])]
        return cls(tuple(texts), padding, torch.tensor(spans).cumsum(0).int())

    @property
    def longest(self) -> int:
        """Tokens of the longest text, or of the padding."""
        return max((*self.texts, self.padding))

    def part(self, texts: slice) -> "PackedLengths":
        """Lengths of neighbouring texts as a row of their own."""
        before = sum(self.texts[: texts.start])
        return PackedLengths(self.texts[texts], 0, self.cumulative[texts.start : texts.stop + 1] - before)

    def to(self, device: torch.device | str) -> "PackedLengths":
        """Copy with its tensor on `device`."""
        return replace(self, cumulative=_moved(self.cumulative, device))


@dataclass(frozen=True)
class PackedBatch:
    """N texts as one row of T tokens, longest text first.

    Tokens are picked by index and counted on the host. A mask would make the host wait for a GPU to learn how
    many there are.

    Attributes:
        input_ids_T: token ids.
        position_ids_T: position of each token in its own text.
        pooled_P: places in the row of the tokens that take part in pooling, ascending.
        text_index_P: which of the N packed texts each of them belongs to.
        lengths: tokens of each packed text, descending.
        pooled_lengths: pooled tokens of each packed text.
        order_N: order_N[i] is the position in the packed batch of the i-th text given.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    pooled_P: torch.Tensor
    text_index_P: torch.Tensor
    lengths: PackedLengths
    pooled_lengths: PackedLengths
    order_N: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts, without padding."""
        return sum(self.lengths.texts)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Copy with all tensors on `device`."""
        return replace(
            self,
            input_ids_T=_moved(self.input_ids_T, device),
            position_ids_T=_moved(self.position_ids_T, device),
            pooled_P=_moved(self.pooled_P, device),
            text_index_P=_moved(self.text_index_P, device),
            lengths=self.lengths.to(device),
            pooled_lengths=self.pooled_lengths.to(device),
            order_N=_moved(self.order_N, device),
        )


def _moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy on `device`. Only from pinned memory does a GPU copy while it computes and the host goes on."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def split_packed(batch: PackedBatch, tokens: int) -> list[PackedBatch]:
    """Cut a batch into runs of neighbouring texts of at most `tokens` tokens; a longer text runs alone.

    The texts of a run are given in packed order: the vectors of all runs one after the other, taken at
    `order_N`, are those of the batch.
    """
    runs: list[PackedBatch] = []
    first_text = first_token = 0
    last_text = last_token = 0
    for length in (*batch.lengths.texts, tokens + 1):
        if last_text > first_text and last_token + length - first_token > tokens:
            runs.append(_run_of(batch, slice(first_text, last_text), slice(first_token, last_token)))
            first_text, first_token = last_text, last_token
        last_text, last_token = last_text + 1, last_token + length
    return runs


def _run_of(batch: PackedBatch, texts: slice, tokens: slice) -> PackedBatch:
    counts = batch.pooled_lengths.texts
    pooled = slice(sum(counts[: texts.start]), sum(counts[: texts.stop]))
    return PackedBatch(
        batch.input_ids_T[tokens],
        batch.position_ids_T[tokens],
        batch.pooled_P[pooled] - tokens.start,
        batch.text_index_P[pooled] - texts.start,
        batch.lengths.part(texts),
        batch.pooled_lengths.part(texts),
        torch.arange(texts.stop - texts.start, device=batch.order_N.device),
    )


def pack(tokenized: TokenizedTexts) -> PackedBatch:
    """Lay the texts end to end, sorted by length so that equal lengths are neighbours."""
    return pack_ids(tokenized.input_ids, tokenized.pool_starts)


def pack_ids(
    input_ids: Sequence[Sequence[int]], pool_starts: Sequence[int], *, multiple: int = 1
) -> PackedBatch:
    """`pack` for plain lists.

    Args:
        input_ids: token ids of each text.
        pool_starts: number of leading unpooled positions of each text.
        multiple: the row is padded to a multiple of this many tokens. Kernels are chosen, and on CPUs built,
            for a number of tokens; rows of few different lengths find theirs ready.
    """
    lengths_N = torch.tensor([len(ids) for ids in input_ids])
    ids_T = torch.tensor([token for ids in input_ids for token in ids], dtype=torch.long)
    return pack_flat(ids_T, lengths_N, torch.as_tensor(pool_starts), multiple=multiple)


def pack_flat(
    ids_T: torch.Tensor, lengths_N: torch.Tensor, pool_starts_N: torch.Tensor, *, multiple: int = 1
) -> PackedBatch:
    """`pack_ids` for texts that lie end to end in the order in which they are given."""
    packed_to_given = torch.argsort(lengths_N, descending=True, stable=True)
    order_N = torch.empty_like(packed_to_given)
    order_N[packed_to_given] = torch.arange(len(lengths_N))
    given_starts_N = (torch.cumsum(lengths_N, 0) - lengths_N)[packed_to_given]
    lengths_N, pool_starts_N = lengths_N[packed_to_given], pool_starts_N[packed_to_given]
    starts_N = torch.cumsum(lengths_N, 0) - lengths_N
    padding = -len(ids_T) % multiple
    text_index_T = torch.repeat_interleave(torch.arange(len(lengths_N)), lengths_N)
    position_ids_T = torch.arange(len(ids_T)) - starts_N[text_index_T]
    [pooled_P] = torch.nonzero(position_ids_T >= pool_starts_N[text_index_T], as_tuple=True)
    pooled_lengths_N = (lengths_N - pool_starts_N).clamp(min=0)
    return PackedBatch(
        F.pad(ids_T[given_starts_N[text_index_T] + position_ids_T], (0, padding)),
        F.pad(position_ids_T, (0, padding)),
        pooled_P,
        text_index_T[pooled_P],
        PackedLengths.of(lengths_N.tolist(), padding),
        PackedLengths.of(pooled_lengths_N.tolist()),
        order_N,
    )

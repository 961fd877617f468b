"""Gathering vectors across workers with their gradients.

Exact cross-rank InfoNCE: every rank scores its own queries against the documents of all ranks. The backward
of the gather sums what all ranks want from a document at the rank that encoded it. DeepSpeed then averages
parameter gradients over ranks. The result is the gradient of the mean loss over the global batch.

Three rows q1 q2 q3 with documents d1 d2 d3; rank 0 has q1 q2 d1, rank 1 has q3 d2 d3:
    both ranks hold             d1 d2 d3 after the gather
    rank 0 minimises            (loss of q1 + loss of q2) * 2 ranks / 3 rows
    rank 1 minimises             loss of q3               * 2 ranks / 3 rows
    d1 gets on rank 0           what q1, q2 and q3 want from it, q3's part sent by rank 1
    average over the 2 ranks    the gradient of (loss of q1 + q2 + q3) / 3
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_vectors(local_ND: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Vectors of all ranks in rank order; gradients flow back to the rank that owns them.

    Called by all ranks. Ranks may own different numbers of vectors: the shorter ones are padded for the
    transfer.

    Args:
        local_ND: this rank's vectors, shape (counts[rank], D).
        counts: number of vectors of each rank, known to all.

    Returns:
        Tensor of shape (sum of counts, D).
    """
    if world_size() == 1:
        return local_ND
    longest = max(counts)
    padded = F.pad(local_ND, (0, 0, 0, longest - len(local_ND)))
    gathered = all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def largest_over_ranks(value: int) -> int:
    """Largest of the ranks' values; called by all ranks."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, without gradient; called by all ranks."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total

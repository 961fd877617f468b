"""The gather alone, with ranks that own different numbers of vectors, and one that owns none."""

import torch

from rayembed.training.distributed import gather_vectors
from tests.training.spawn import run_ranks

COUNTS = [2, 0, 1]
WIDTH = 4


def vectors_of(rank):
    return torch.arange(COUNTS[rank] * WIDTH, dtype=torch.float32).view(-1, WIDTH) + 100 * rank


def wanted_by(rank):
    """Gradient of this rank's loss with respect to the gathered vectors."""
    return torch.randn(sum(COUNTS), WIDTH, generator=torch.Generator().manual_seed(rank))


def gather(rank, world_size):
    own = vectors_of(rank).requires_grad_()
    gathered = gather_vectors(own, COUNTS)
    (gathered * wanted_by(rank)).sum().backward()
    return {"gathered": gathered.detach(), "gradient": own.grad}


def test_each_rank_gets_all_vectors_and_their_owner_all_gradients(tmp_path):
    everything = torch.cat([vectors_of(rank) for rank in range(len(COUNTS))])
    gradients = sum(wanted_by(rank) for rank in range(len(COUNTS))).split(COUNTS)
    for result, gradient in zip(run_ranks(gather, len(COUNTS), tmp_path), gradients, strict=True):
        assert torch.equal(result["gathered"], everything)
        torch.testing.assert_close(result["gradient"], gradient)

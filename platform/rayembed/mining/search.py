"""Exact search by inner product: the best documents of each query, over a corpus that comes in shards.

Shapes: Q queries, N documents of a shard, D width, K results, G groups of columns.
"""

from collections.abc import Iterable

import numpy as np
import torch

from rayembed.mining.excluded import Excluded

QUERY_BLOCK = 1024
DOCUMENT_BLOCK = 4096
GROUP = 64  # columns whose largest score is looked at before any of them is


class TopK:
    """The best documents so far of Q queries.

    A block of scores is compared with each query's K-th best score so far. That fails for nearly all of them,
    so the largest of every `GROUP` neighbours is compared first: one fast pass over the scores in place of
    sorting them. Of equal scores the document that came first stays, which makes the result independent of
    the shards.

    Args:
        query_QD: vectors of the queries.
        count: K.
        excluded: pairs that are no results.
        device: where the products are computed.
    """

    def __init__(
        self,
        query_QD: np.ndarray,
        count: int,
        *,
        excluded: Excluded | None = None,
        device: torch.device | str = "cpu",
    ):
        self._device = torch.device(device)
        self._query_QD = torch.from_numpy(np.ascontiguousarray(query_QD, dtype=np.float32)).to(self._device)
        parts = [np.arange(start, start + QUERY_BLOCK) for start in range(0, len(query_QD), QUERY_BLOCK)]
        self._excluded = [excluded.of_queries(part) if excluded is not None else None for part in parts]
        self._seen = 0
        # One buffer for all blocks: fresh memory for each would cost more than the look at the scores.
        self._scores = torch.empty(QUERY_BLOCK * _padded(DOCUMENT_BLOCK), device=self._device)
        size = (len(query_QD), count)
        self._score_QK = torch.full(size, float("-inf"), device=self._device)
        self._position_QK = torch.full(size, -1, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def add(self, document_ND: np.ndarray) -> None:
        """Search the next shard of the corpus."""
        for start in range(0, len(document_ND), DOCUMENT_BLOCK):
            block = np.array(document_ND[start : start + DOCUMENT_BLOCK], dtype=np.float32, order="C")
            self._add_block(torch.from_numpy(block).to(self._device))
            self._seen += len(block)

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, K) and corpus positions (Q, K), best first; -inf and -1 where there are fewer than K."""
        return self._score_QK.cpu().numpy(), self._position_QK.cpu().numpy()

    def _add_block(self, block_ND: torch.Tensor) -> None:
        documents = len(block_ND)
        block_ND = torch.nn.functional.pad(block_ND, (0, 0, 0, _padded(documents) - documents))
        for number, excluded in enumerate(self._excluded):
            start = number * QUERY_BLOCK
            stop = min(start + QUERY_BLOCK, len(self._query_QD))
            size = (stop - start, len(block_ND))
            score_QN = self._scores[: size[0] * size[1]].view(size)
            torch.matmul(self._query_QD[start:stop], block_ND.T, out=score_QN)
            score_QN[:, documents:] = float("-inf")
            if excluded is not None:
                pairs = excluded.of_documents(self._seen, self._seen + documents).pairs()
                rows, columns = (torch.from_numpy(side.astype(np.int64)).to(self._device) for side in pairs)
                score_QN[rows, columns] = float("-inf")
            self._merge(slice(start, stop), score_QN)

    def _merge(self, queries: slice, score_QN: torch.Tensor) -> None:
        best_QK = self._score_QK[queries]
        count = best_QK.shape[1]
        bound_Q = best_QK[:, -1]
        if self._seen == 0 and score_QN.shape[1] > count:
            # There is nothing to beat yet: take the K-th best of this block as just not good enough.
            kth_Q = score_QN.topk(count, dim=1).values[:, -1]
            bound_Q = kth_Q.nextafter(torch.full_like(kth_Q, float("-inf")))
        # Two queries, K = 2, three scores of this block above their query's bound:
        #   rows [0, 0, 1]  columns [4, 7, 2]   ->  found [2, 1]: hits of each query
        #   slot [0, 1, 0]: place of the hit among those of its query;
        #   it is written behind the K best so far:
        #   query 0: [best, best, hit 4, hit 7]   query 1: [best, best, hit 2, -inf]; then sort and keep K.
        rows, columns = _above(score_QN, bound_Q)
        if len(rows) == 0:
            return
        found = torch.bincount(rows, minlength=len(best_QK))
        slot = torch.arange(len(rows), device=rows.device) - (found.cumsum(0) - found)[rows]
        width = count + int(found.max())
        scores = best_QK.new_full((len(best_QK), width), float("-inf"))
        positions = self._position_QK.new_full((len(best_QK), width), -1)
        scores[:, :count], positions[:, :count] = best_QK, self._position_QK[queries]
        scores[rows, count + slot] = score_QN[rows, columns]
        positions[rows, count + slot] = columns + self._seen
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        self._score_QK[queries] = scores[:, :count]
        self._position_QK[queries] = positions.gather(1, order[:, :count])


def exact_top_k(
    query_QD: np.ndarray,
    shards: Iterable[np.ndarray],
    count: int,
    *,
    excluded: Excluded | None = None,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` documents with the largest inner product for each query.

    Args:
        query_QD: vectors of the queries.
        shards: the corpus in order, each shard (N, D); a memory-mapped one is read once, block by block.
        count: K.
        excluded: pairs that are no results.
        device: where the products are computed.

    Returns:
        fp32 scores (Q, K) and int64 positions in the corpus (Q, K), best first and of equal scores the first
        document first; -inf and -1 where a query has fewer than K.
    """
    search = TopK(query_QD, count, excluded=excluded, device=device)
    for shard_ND in shards:
        search.add(shard_ND)
    return search.results()


def merged(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` of two (scores, positions) for the same queries, best first; the first wins a tie."""
    scores, positions = (np.concatenate([mine, its], axis=1) for mine, its in zip(one, other, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def _padded(columns: int) -> int:
    return -(-columns // GROUP) * GROUP


def _above(score_QN: torch.Tensor, bound_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns, in order, of the scores above their row's bound."""
    score_QGC = score_QN.view(len(score_QN), -1, GROUP)
    rows, groups = (score_QGC.amax(dim=2) > bound_Q.unsqueeze(1)).nonzero(as_tuple=True)
    hits, offsets = (score_QGC[rows, groups] > bound_Q[rows].unsqueeze(1)).nonzero(as_tuple=True)
    return rows[hits], groups[hits] * GROUP + offsets

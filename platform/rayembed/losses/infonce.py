"""InfoNCE over a shared pool of documents, with per-row choice of negatives.

Shapes: Q queries of this rank, B queries and K documents of the whole batch, N candidates, D width.
Source: arXiv 2405.17428, section 3.2; temperature as in E5-Mistral (arXiv 2401.00368).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rayembed.losses.false_negatives import without_false_negatives
from rayembed.losses.hardness import hardness_penalty

Candidates = tuple[torch.Tensor, torch.Tensor]
"""Cosines of each query with N candidates (Q, N), and True where a candidate is a negative (Q, N)."""


def candidate_mask(
    num_documents: int,
    positives: list[list[int]],
    negatives: list[list[int]],
    in_batch: list[bool],
) -> torch.Tensor:
    """Which documents compete for each query.

    A row with in-batch negatives competes against every document of the batch; a row without, against its own
    negatives only. The first positive is the target. Further positives of the row are known to be right, so
    they are never negatives. Documents are identified by position in the batch's list of distinct documents,
    so a text that is a positive of the row cannot come back as its negative under another row's name.

    Args:
        num_documents: K.
        positives: for each query its positives' document positions, the target first.
        negatives: for each query its hard negatives' document positions.
        in_batch: for each query whether the other rows' documents are negatives.

    Returns:
        Boolean tensor (Q, K), True at the target and at every negative.
    """
    allowed_QK = torch.tensor(in_batch).unsqueeze(1).expand(-1, num_documents).clone()
    for row, (own_positives, own_negatives) in enumerate(zip(positives, negatives, strict=True)):
        allowed_QK[row, own_negatives] = True
        allowed_QK[row, own_positives] = False
        allowed_QK[row, own_positives[0]] = True
    return allowed_QK


def infonce(
    query_QD: torch.Tensor,
    document_KD: torch.Tensor,
    target_Q: torch.Tensor,
    allowed_QK: torch.Tensor,
    temperature: float,
    *,
    more_negatives: Sequence[Candidates] = (),
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of each query's target document against everything that competes with it.

    Args:
        query_QD: unit vectors of the queries, fp32.
        document_KD: unit vectors of all documents, fp32.
        target_Q: position of each query's positive among the K documents.
        allowed_QK: True where a document competes for a query; see `candidate_mask`.
        temperature: divisor of the cosine.
        more_negatives: candidates beyond the documents; see `rayembed.losses.same_side`.
        false_negative_margin: see `rayembed.losses.false_negatives`; None leaves every negative in.
        hardness: see `rayembed.losses.hardness`; 0 weighs all negatives alike.

    Returns:
        Loss of each query (Q); reduce it with the mean over the global batch.
    """
    cosines_QK = query_QD @ document_KD.T
    target_Q1 = target_Q.unsqueeze(1)
    positive_Q1 = cosines_QK.gather(1, target_Q1)
    negative_QK = allowed_QK.scatter(1, target_Q1, False)
    blocks = []
    for cosines_QN, negative_QN in [(cosines_QK, negative_QK), *more_negatives]:
        if false_negative_margin is not None:
            negative_QN = without_false_negatives(cosines_QN, positive_Q1, negative_QN, false_negative_margin)
        logits_QN = cosines_QN / temperature
        if hardness:
            logits_QN = logits_QN + hardness_penalty(cosines_QN, hardness)
        blocks.append(logits_QN.masked_fill(~negative_QN, float("-inf")))
    blocks[0] = blocks[0].scatter(1, target_Q1, positive_Q1 / temperature)
    return F.cross_entropy(torch.cat(blocks, dim=1), target_Q, reduction="none")


def document_to_query(
    query_QD: torch.Tensor,
    document_KD: torch.Tensor,
    all_queries_BD: torch.Tensor,
    target_Q: torch.Tensor,
    competing_QB: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The other direction: each query's positive must find that query among the queries of the whole batch.

    Args:
        query_QD: unit vectors of this rank's queries, fp32.
        document_KD: unit vectors of all documents, fp32.
        all_queries_BD: unit vectors of the queries of all ranks, fp32.
        target_Q: position of each query's positive among the K documents.
        competing_QB: True where a query of the batch competes for the positive of this rank's query; the
            query itself must be left out.
        temperature: divisor of the cosine.

    Returns:
        Loss of each positive (Q); zero where no query competes.
    """
    positive_QD = document_KD[target_Q]
    own_Q1 = (positive_QD * query_QD).sum(dim=1, keepdim=True) / temperature
    others_QB = (positive_QD @ all_queries_BD.T / temperature).masked_fill(~competing_QB, float("-inf"))
    return torch.logsumexp(torch.cat([own_Q1, others_QB], dim=1), dim=1) - own_Q1.squeeze(1)

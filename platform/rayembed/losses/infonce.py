"""InfoNCE over a shared pool of documents, with the choice of negatives for every row.

Shapes: Q queries of this rank, B queries and K documents of the whole batch, N candidates, D width.
Source: arXiv 2405.17428, section 3.2; temperature as in E5-Mistral (arXiv 2401.00368).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from rayembed.losses.base import LossInputs, LossSettings, Temperature

Candidates = tuple[torch.Tensor, torch.Tensor]
"""Cosines of each query with N candidates (Q, N), and True where a candidate is a negative (Q, N)."""


class InfoNCEConfig(LossSettings):
    """Contrastive loss: a query's positive against its negatives."""

    type: Literal["infonce"] = "infonce"
    temperature: Temperature = 0.02
    document_to_query_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss in the direction document to query, for rows with in-batch negatives",
    )
    query_to_query: bool = Field(
        False, description="other queries are negatives as well, for rows with in-batch negatives"
    )
    document_to_document: bool = Field(
        False, description="the query's negatives are negatives of its positive as well"
    )
    false_negative_margin: float | None = Field(
        None,
        description="leave out negatives that score higher than the positive by more than this, in units of "
        "the cosine; None: leave none out",
    )
    hardness: float = Field(
        0.0, ge=0, description="a negative with cosine c weighs exp(hardness * c) times; 0: all alike"
    )

    @property
    def sees_other_queries(self) -> bool:
        """Whether vectors of other workers' queries are needed."""
        return bool(self.document_to_query_weight or self.query_to_query)

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Cross entropy of each query's positive, with what the settings add."""
        more = []
        if self.query_to_query:
            assert inputs.all_queries_BD is not None
            more.append(query_to_query(inputs.query_QD, inputs.all_queries_BD, inputs.competing_QB))
        if self.document_to_document:
            more.append(document_to_document(inputs.document_KD, inputs.target_Q, inputs.allowed_QK))
        losses_Q = infonce(
            inputs.query_QD,
            inputs.document_KD,
            inputs.target_Q,
            inputs.allowed_QK,
            self.temperature,
            more_negatives=more,
            false_negative_margin=self.false_negative_margin,
            hardness=self.hardness,
        )
        if self.document_to_query_weight:
            assert inputs.all_queries_BD is not None
            losses_Q = losses_Q + self.document_to_query_weight * document_to_query(
                inputs.query_QD,
                inputs.document_KD,
                inputs.all_queries_BD,
                inputs.target_Q,
                inputs.competing_QB,
                self.temperature,
            )
        return losses_Q


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
        allowed_QK: True at the target and where a document competes with it.
        temperature: divisor of the cosine.
        more_negatives: candidates beyond the documents; see `query_to_query` and `document_to_document`.
        false_negative_margin: leave out negatives whose cosine is above the positive's by more than this.
            Texts known to be right are left out when the batch is made; this is for those that nobody
            marked. Source: arXiv 2506.05176 (Qwen3 Embedding), section 3.1, where the margin is 0.1.
        hardness: a negative of cosine c weighs exp(hardness * c) times; no gradient flows through the weight.
            Source: arXiv 2503.04812 (LLaVE), equation 5, which uses 9 for in-batch negatives.

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
            in_reach_QN = cosines_QN.detach() <= positive_Q1.detach() + false_negative_margin
            negative_QN = negative_QN & in_reach_QN
        logits_QN = cosines_QN / temperature
        if hardness:
            logits_QN = logits_QN + hardness * cosines_QN.detach()
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


def query_to_query(
    query_QD: torch.Tensor, all_queries_BD: torch.Tensor, competing_QB: torch.Tensor
) -> Candidates:
    """Other queries as negatives of each query.

    This and `document_to_document` are the partition function of the improved contrastive loss.
    Source: arXiv 2308.03281 (GTE), section 3.3.

    Args:
        query_QD: unit vectors of this rank's queries.
        all_queries_BD: unit vectors of the queries of all ranks.
        competing_QB: True where the queries have no known positive in common; False for the query itself.
    """
    return query_QD @ all_queries_BD.T, competing_QB


def document_to_document(
    document_KD: torch.Tensor, target_Q: torch.Tensor, allowed_QK: torch.Tensor
) -> Candidates:
    """The documents that compete with a query's positive, as negatives of that positive.

    Args:
        document_KD: unit vectors of all documents.
        target_Q: position of each query's positive.
        allowed_QK: True at the target and at the query's negatives.
    """
    return document_KD[target_Q] @ document_KD.T, allowed_QK.scatter(1, target_Q.unsqueeze(1), False)

"""Learning from a teacher's scores of documents, a reranker's for example.

Source: arXiv 2207.02578 (SimLM), section 3.3.
Shapes: Q queries of this rank, K documents of all ranks, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from rayembed.losses.base import LossInputs, LossSettings, Temperature


class ScoreDistillationConfig(LossSettings):
    """Divergence from a teacher's scores, for rows that carry them."""

    type: Literal["score_distillation"] = "score_distillation"
    temperature: Temperature = 0.02
    teacher_temperature: float = Field(1.0, gt=0, description="divisor of the teacher's scores")

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Divergence for each query; zero where the teacher scored fewer than two documents."""
        teacher_QK = inputs.teacher_QK
        if teacher_QK is None:
            # The loss is zero, but its graph must reach the gathered documents: all ranks call the backward
            # of the gather.
            teacher_QK = torch.full_like(inputs.allowed_QK, torch.nan, dtype=torch.float32)
        return score_distillation(
            inputs.query_QD,
            inputs.document_KD,
            teacher_QK.nan_to_num(0.0),
            ~teacher_QK.isnan(),
            self.temperature,
            self.teacher_temperature,
        )


def score_distillation(
    query_QD: torch.Tensor,
    document_KD: torch.Tensor,
    teacher_QK: torch.Tensor,
    scored_QK: torch.Tensor,
    temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's distribution over documents from the teacher's.

    Both distributions are over the documents that the teacher scored for the query.

    Args:
        query_QD: unit vectors of the queries, fp32.
        document_KD: unit vectors of all documents, fp32.
        teacher_QK: the teacher's scores; any value where there is none.
        scored_QK: True where the teacher scored the document for the query.
        temperature: divisor of the student's cosines.
        teacher_temperature: divisor of the teacher's scores.

    Returns:
        Loss of each query (Q); zero where the teacher scored fewer than two documents.
    """
    # A softmax over nothing is NaN. Rows without scores get the first document, of which student and teacher
    # are both certain, so that their divergence is 0.
    first_K = torch.arange(scored_QK.shape[1], device=scored_QK.device) == 0
    scored_QK = scored_QK | (~scored_QK.any(dim=1, keepdim=True) & first_K)
    minus_infinity = torch.finfo(torch.float32).min
    student_QK = F.log_softmax(
        (query_QD @ document_KD.T / temperature).masked_fill(~scored_QK, minus_infinity), dim=1
    )
    wanted_QK = F.log_softmax(
        (teacher_QK / teacher_temperature).masked_fill(~scored_QK, minus_infinity), dim=1
    )
    divergence_QK = wanted_QK.exp() * (wanted_QK - student_QK)
    return divergence_QK.masked_fill(~scored_QK, 0.0).sum(dim=1)

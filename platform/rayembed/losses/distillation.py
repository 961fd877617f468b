"""Learning from a teacher: its scores of documents, or its vectors.

Shapes: Q queries of this rank, K documents of the whole batch, D width.
"""

import torch
import torch.nn.functional as F


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
    Source: arXiv 2207.02578 (SimLM), section 3.3.

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
    # Rows without scores get one document, whose distribution is certain for student and teacher alike.
    scored_QK = scored_QK | (~scored_QK.any(dim=1, keepdim=True) & _first_column(scored_QK))
    minus_infinity = torch.finfo(torch.float32).min
    student_QK = F.log_softmax(
        (query_QD @ document_KD.T / temperature).masked_fill(~scored_QK, minus_infinity), dim=1
    )
    wanted_QK = F.log_softmax(
        (teacher_QK / teacher_temperature).masked_fill(~scored_QK, minus_infinity), dim=1
    )
    divergence_QK = wanted_QK.exp() * (wanted_QK - student_QK)
    return divergence_QK.masked_fill(~scored_QK, 0.0).sum(dim=1)


def vector_distillation(student_QD: torch.Tensor, teacher_QD: torch.Tensor) -> torch.Tensor:
    """Squared distance of each student vector from the teacher's, summed over the width: shape (Q).

    Both are unit vectors, so this is 2 - 2 cosine. Source: arXiv 2004.09813, equation 1.
    """
    return (student_QD - teacher_QD).pow(2).sum(dim=1)


def _first_column(mask_QK: torch.Tensor) -> torch.Tensor:
    return torch.arange(mask_QK.shape[1], device=mask_QK.device) == 0

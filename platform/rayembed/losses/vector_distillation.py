"""Learning a teacher's vectors: each vector moves towards the teacher's vector of the same text.

A teacher of another width is met through a linear projection that is trained along and not exported; see
`training.distillation`. The student's own vectors are then as wide as before.

Source: arXiv 2004.09813, equation 1. Shapes: Q queries of this rank, K documents of all ranks, D width.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from rayembed.losses.base import LossInputs, LossSettings


class VectorDistillationConfig(LossSettings):
    """Squared distance of queries and positives from a teacher's vectors."""

    needs_full_width: ClassVar[bool] = True

    type: Literal["vector_distillation"] = "vector_distillation"
    teacher: str = Field(description="rayembed model folder; width, tokenizer and instructions may differ")

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Distance of each query plus that of its positive."""
        assert inputs.teacher_query_QD is not None
        assert inputs.teacher_document_KD is not None
        query_QD, document_KD = inputs.projected_query_QD, inputs.projected_document_KD
        if query_QD is None or document_KD is None:
            query_QD, document_KD = inputs.query_QD, inputs.document_KD
        return squared_distance(query_QD, inputs.teacher_query_QD) + squared_distance(
            document_KD[inputs.target_Q], inputs.teacher_document_KD[inputs.target_Q]
        )


def squared_distance(student_QD: torch.Tensor, teacher_QD: torch.Tensor) -> torch.Tensor:
    """Squared distance of each pair of unit vectors (Q), which is 2 - 2 cosine."""
    return (student_QD - teacher_QD).pow(2).sum(dim=1)

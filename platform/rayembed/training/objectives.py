"""From vectors to losses: which function computes each configured loss.

Shapes: Q queries of this rank, B queries and K documents of all ranks, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rayembed.config import (
    InfoNCEConfig,
    ScoreDistillationConfig,
    SimCSEConfig,
    StageConfig,
    VectorDistillationConfig,
)
from rayembed.data.collate import TrainingBatch
from rayembed.losses.distillation import score_distillation, vector_distillation
from rayembed.losses.infonce import document_to_query, infonce
from rayembed.losses.matryoshka import matryoshka, truncated
from rayembed.losses.same_side import document_to_document, query_to_query
from rayembed.losses.simcse import simcse


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a step, fp32.

    Attributes:
        query_QD: this rank's queries.
        document_KD: documents of all ranks, with gradient.
        all_queries_BD: queries of all ranks, with gradient; None where no loss needs them.
        teacher: the teacher's vectors of the same texts; None without a teacher.
    """

    query_QD: torch.Tensor
    document_KD: torch.Tensor
    all_queries_BD: torch.Tensor | None = None
    teacher: "Vectors | None" = None

    def truncated(self, dimensions: int) -> "Vectors":
        """The same vectors cut to their first dimensions; the teacher's stay whole."""
        queries_BD = self.all_queries_BD
        return Vectors(
            query_QD=truncated(self.query_QD, dimensions),
            document_KD=truncated(self.document_KD, dimensions),
            all_queries_BD=None if queries_BD is None else truncated(queries_BD, dimensions),
            teacher=self.teacher,
        )


def row_losses(stage: StageConfig, vectors: Vectors, batch: TrainingBatch) -> torch.Tensor:
    """Loss of each of this rank's rows (Q): the weighted sum of the stage's losses."""

    def at(dimensions: int) -> torch.Tensor:
        cut = vectors.truncated(dimensions)
        parts = [loss.weight * _TERMS[loss.type](loss, cut, batch) for loss in stage.loss]
        return torch.stack(parts).sum(dim=0)

    if stage.matryoshka is None:
        return at(vectors.query_QD.shape[1])
    return matryoshka(at, stage.matryoshka.dimensions, stage.matryoshka.resolved_weights)


def _infonce(loss: InfoNCEConfig, vectors: Vectors, batch: TrainingBatch) -> torch.Tensor:
    more = []
    if loss.query_to_query:
        assert vectors.all_queries_BD is not None
        more.append(query_to_query(vectors.query_QD, vectors.all_queries_BD, batch.competing_QB))
    if loss.document_to_document:
        more.append(document_to_document(vectors.document_KD, batch.target_Q, batch.allowed_QK))
    losses_Q = infonce(
        vectors.query_QD,
        vectors.document_KD,
        batch.target_Q,
        batch.allowed_QK,
        loss.temperature,
        more_negatives=more,
        false_negative_margin=loss.false_negative_margin,
        hardness=loss.hardness,
    )
    if loss.document_to_query_weight:
        assert vectors.all_queries_BD is not None
        losses_Q = losses_Q + loss.document_to_query_weight * document_to_query(
            vectors.query_QD,
            vectors.document_KD,
            vectors.all_queries_BD,
            batch.target_Q,
            batch.competing_QB,
            loss.temperature,
        )
    return losses_Q


def _simcse(loss: SimCSEConfig, vectors: Vectors, batch: TrainingBatch) -> torch.Tensor:
    return simcse(vectors.query_QD, vectors.document_KD, batch.target_Q, batch.allowed_QK, loss.temperature)


def _score_distillation(
    loss: ScoreDistillationConfig, vectors: Vectors, batch: TrainingBatch
) -> torch.Tensor:
    # Without scores the loss is zero, and its graph must still reach the gathered documents: all ranks call
    # the backward of the gather.
    teacher_QK = batch.teacher_QK
    if teacher_QK is None:
        teacher_QK = torch.full_like(batch.allowed_QK, torch.nan, dtype=torch.float32)
    return score_distillation(
        vectors.query_QD,
        vectors.document_KD,
        teacher_QK.nan_to_num(0.0),
        ~teacher_QK.isnan(),
        loss.temperature,
        loss.teacher_temperature,
    )


def _vector_distillation(
    loss: VectorDistillationConfig, vectors: Vectors, batch: TrainingBatch
) -> torch.Tensor:
    assert vectors.teacher is not None
    return vector_distillation(vectors.query_QD, vectors.teacher.query_QD) + vector_distillation(
        vectors.document_KD[batch.target_Q], vectors.teacher.document_KD[batch.target_Q]
    )


_TERMS: dict[str, Callable[[Any, Vectors, TrainingBatch], torch.Tensor]] = {
    "infonce": _infonce,
    "simcse": _simcse,
    "score_distillation": _score_distillation,
    "vector_distillation": _vector_distillation,
}

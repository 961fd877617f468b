"""Forward and loss of one contrastive training step, for one rank.

Shapes: Q queries, E documents and N = Q + E texts of this rank, K documents of all ranks, S sources of the
blend, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from rayembed.config import StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.losses import LossInputs, row_losses
from rayembed.losses.measures import row_measures, uniformity
from rayembed.training.distributed import gather_vectors, world_size
from rayembed.training.timing import StepTimer

UNIFORMITY_DOCUMENTS = 256  # of a batch that enter the measure, whose cost grows with their square


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves behind; tensors, so that nothing waits for the device.

    Attributes:
        loss: scalar to differentiate; averaged over ranks it is the mean over the global batch.
        sums_S: for each measure the sum over this rank's rows of each source.
        counts_S: for each measure the rows of each source that it is a mean of.
        uniformity: of documents of the whole batch, the same on every rank; None where there are no vectors.
    """

    loss: torch.Tensor
    sums_S: dict[str, torch.Tensor]
    counts_S: dict[str, torch.Tensor]
    uniformity: torch.Tensor | None = None


def contrastive_step(embedder: nn.Module, batch: TrainingBatch, stage: StageConfig) -> StepOutput:
    """Encode this rank's queries and documents in one packed pass and compare them with all ranks' documents.

    Called by all ranks with their parts of the same global batch.
    """
    return contrastive_loss(embedder(batch.packed), batch, stage, StepTimer())


def contrastive_loss(
    vectors_ND: torch.Tensor,
    batch: TrainingBatch,
    stage: StageConfig,
    timer: StepTimer,
    teacher_ND: torch.Tensor | None = None,
) -> StepOutput:
    """Loss of this rank's rows against all ranks' documents; called by all ranks.

    Args:
        vectors_ND: this rank's queries followed by its documents.
        batch: this rank's part of the global batch.
        stage: its losses.
        timer: gets the phases gather and loss.
        teacher_ND: a teacher's vectors of the same texts.
    """
    with timer.phase("gather"):
        inputs = _gathered(vectors_ND, batch, stage.sees_other_queries)
        if teacher_ND is not None:
            taught = _gathered(teacher_ND, batch, with_queries=False)
            inputs = replace(inputs, teacher_query_QD=taught.query_QD, teacher_document_KD=taught.document_KD)
    with timer.phase("loss"):
        losses_Q = row_losses(stage.loss, inputs, stage.matryoshka)
        sums_S, counts_S = _measured(losses_Q.detach(), inputs, batch.source_Q, len(stage.blend))
    return StepOutput(
        # The mean over local rows when all ranks have the same number of rows; exact when they do not.
        loss=losses_Q.sum() * world_size() / sum(batch.query_counts),
        sums_S=sums_S,
        counts_S=counts_S,
        uniformity=uniformity(inputs.document_KD[:UNIFORMITY_DOCUMENTS]),
    )


def _gathered(vectors_ND: torch.Tensor, batch: TrainingBatch, with_queries: bool) -> LossInputs:
    query_QD, document_ED = vectors_ND[: batch.num_queries], vectors_ND[batch.num_queries :]
    return LossInputs(
        query_QD=query_QD,
        document_KD=gather_vectors(document_ED, batch.document_counts),
        target_Q=batch.target_Q,
        allowed_QK=batch.allowed_QK,
        competing_QB=batch.competing_QB,
        teacher_QK=batch.teacher_QK,
        all_queries_BD=gather_vectors(query_QD, batch.query_counts) if with_queries else None,
    )


@torch.no_grad()
def _measured(
    losses_Q: torch.Tensor, inputs: LossInputs, source_Q: torch.Tensor, num_sources: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sums and counts by source of everything that is known of single rows."""
    measured = row_measures(inputs.query_QD, inputs.document_KD, inputs.target_Q, inputs.allowed_QK)
    every_Q, contested_Q = torch.ones_like(losses_Q), measured.contested_Q.float()
    values = {
        "loss": (losses_Q, every_Q),
        "accuracy": (measured.correct_Q.float(), every_Q),
        "positive_score": (measured.positive_Q, every_Q),
        "negative_score": (measured.negative_Q, contested_Q),
        "margin": ((measured.positive_Q - measured.hardest_Q) * contested_Q, contested_Q),
        "alignment": (2 - 2 * measured.positive_Q, every_Q),
    }
    zeros_S = torch.zeros(num_sources, device=losses_Q.device)
    sums_S = {name: zeros_S.index_add(0, source_Q, value) for name, (value, _) in values.items()}
    counts_S = {name: zeros_S.index_add(0, source_Q, count) for name, (_, count) in values.items()}
    return sums_S, counts_S

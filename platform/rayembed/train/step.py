"""Forward and loss of one training step, for one rank.

Shapes: Q queries of this rank, K documents and B queries of all ranks, S sources of the blend, D width.
"""

from dataclasses import dataclass

import torch
from torch import nn

from rayembed.config import StageConfig
from rayembed.data.collate import TrainingBatch
from rayembed.losses.infonce import document_to_query, infonce
from rayembed.train.distributed import gather_vectors, world_size


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves behind; tensors, so that nothing waits for the device.

    Attributes:
        loss: scalar to differentiate; averaged over ranks it is the mean over the global batch.
        loss_by_source_S: sum of this rank's row losses of each source.
        correct_by_source_S: rows whose positive scored above all its negatives.
        rows_by_source_S: rows.
    """

    loss: torch.Tensor
    loss_by_source_S: torch.Tensor
    correct_by_source_S: torch.Tensor
    rows_by_source_S: torch.Tensor


def contrastive_step(embedder: nn.Module, batch: TrainingBatch, stage: StageConfig) -> StepOutput:
    """Encode this rank's queries and documents in one packed pass and compare them with all ranks' documents.

    Called by all ranks with their parts of the same global batch.
    """
    vectors = embedder(batch.packed)
    query_QD, local_document_ED = vectors[: batch.num_queries], vectors[batch.num_queries :]
    document_KD = gather_vectors(local_document_ED, batch.document_counts)
    losses_Q = infonce(query_QD, document_KD, batch.target_Q, batch.allowed_QK, stage.temperature)
    if stage.document_to_query_weight:
        all_queries_BD = gather_vectors(query_QD, batch.query_counts)
        losses_Q = losses_Q + stage.document_to_query_weight * document_to_query(
            query_QD, document_KD, all_queries_BD, batch.target_Q, batch.competing_QB, stage.temperature
        )
    # Equal to the mean over local rows when all ranks have the same number of rows; exact when they do not.
    loss = losses_Q.sum() * world_size() / sum(batch.query_counts)
    with torch.no_grad():
        scores_QK = (query_QD @ document_KD.T).masked_fill(~batch.allowed_QK, float("-inf"))
        correct_Q = scores_QK.argmax(dim=1) == batch.target_Q
        num_sources = len(stage.blend)
        zeros_S = torch.zeros(num_sources, device=loss.device)
        return StepOutput(
            loss=loss,
            loss_by_source_S=zeros_S.index_add(0, batch.source_Q, losses_Q.detach()),
            correct_by_source_S=zeros_S.index_add(0, batch.source_Q, correct_Q.float()),
            rows_by_source_S=zeros_S.index_add(0, batch.source_Q, torch.ones_like(losses_Q)),
        )

"""The teacher whose vectors a stage learns: how it reads texts, its weights, and the way into its space.

Shapes: N texts, D width of the student, T of the teacher.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from rayembed.common.paths import fetch, resolve
from rayembed.config.stage import StageConfig
from rayembed.contract import Contract
from rayembed.contract.packing import PackedBatch
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.losses import VectorDistillationConfig
from rayembed.model.checkpoint import load_model, read_manifest
from rayembed.model.embedding_model import EmbeddingModel

PROJECTION = "projection."  # begins the names of weights that no exported model has
_READING = ("instruction_template", "append_eos", "pool_instruction", "truncation", "prompts")


class ProjectedModel(EmbeddingModel):
    """A student that also says where its vectors lie in the space of a teacher of another width.

    Its output (N, D + T) is the student's unit vector followed by the unit vector of `projection` of it.
    """

    def __init__(self, student: EmbeddingModel, width: int, seed: int):
        nn.Module.__init__(self)
        self.config, self.backbone, self.pooling = student.config, student.backbone, student.pooling
        projection = nn.Linear(student.dimensions, width, bias=False)
        torch.manual_seed(seed)  # the same on every rank
        nn.init.orthogonal_(projection.weight)
        self.projection = projection.to(self.backbone.device, self.backbone.dtype)

    def pool(self, states_PD: torch.Tensor | list[torch.Tensor], batch: PackedBatch) -> torch.Tensor:
        """Vectors of both spaces (N, D + T), fp32."""
        vectors_ND = super().pool(states_PD, batch)
        projected_NT = self.projection(vectors_ND.to(self.projection.weight.dtype)).float()
        return torch.cat([vectors_ND, F.normalize(projected_NT, dim=-1)], dim=1)


def teacher_folder(stage: StageConfig) -> Path | None:
    """Checkpoint of the teacher whose vectors a stage learns; None: it learns none."""
    folders = [loss.teacher for loss in stage.loss if isinstance(loss, VectorDistillationConfig)]
    return fetch(resolve(folders[0])) if folders else None


def other_reader(stage: StageConfig, contract: Contract, tokenizer: str) -> str | None:
    """The teacher's folder where it reads texts in another way than the student; None: it takes its tokens.

    Args:
        stage: with its losses.
        contract: of the student.
        tokenizer: of the student.

    Raises:
        CheckpointError: the folder is no checkpoint.
    """
    folder = teacher_folder(stage)
    if folder is None:
        return None
    theirs = Contract.load(folder)
    alike = (
        theirs.max_length >= contract.max_length
        and all(getattr(theirs, key) == getattr(contract, key) for key in _READING)
        and load_tokenizer(folder / "tokenizer").get_vocab() == load_tokenizer(tokenizer).get_vocab()
    )
    return None if alike else str(folder)


def with_projection(student: EmbeddingModel, stage: StageConfig, seed: int) -> EmbeddingModel:
    """The student, with a way into the space of the stage's teacher where that has another width."""
    folder = teacher_folder(stage)
    width = read_manifest(folder)["dimensions"] if folder else student.dimensions
    return student if width == student.dimensions else ProjectedModel(student, width, seed)


def load_teacher(stage: StageConfig, device: torch.device, dtype: torch.dtype) -> EmbeddingModel | None:
    """The teacher's model for inference; None: the stage has none.

    Raises:
        CheckpointError: the folder is no checkpoint.
    """
    folder = teacher_folder(stage)
    return load_model(folder, dtype=dtype, device=device).embedder if folder else None

"""The teacher that a stage learns from: how it reads texts, its weights, and the way into its spaces.

Shapes: N texts, P pooled tokens, D width of the student, T of the teacher.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from rayembed.common.errors import ConfigError
from rayembed.common.paths import fetch, resolve
from rayembed.config.stage import StageConfig
from rayembed.contract import Contract
from rayembed.contract.packing import PackedBatch, split_packed
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.losses import StateMatchingConfig, VectorDistillationConfig
from rayembed.losses.state_matching import state_distance
from rayembed.model.checkpoint import load_model
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling.mean import mean_by_text

PROJECTION = "projection."  # begins the names of weights that no exported model has
_READING = ("instruction_template", "append_eos", "pool_instruction", "truncation", "prompts")


class TaughtModel(EmbeddingModel):
    """A student that knows its teacher and also says how far it is from it.

    Its output (N, D + T + 1) is the student's unit vector; where the stage learns vectors of another width,
    the unit vector of its projection; where it learns states, the distance of the text's states. The distance
    is a number of the text alone, so chunks and ranks sum it up as they do vectors.

    Attributes:
        teacher: no submodule, so it is neither trained nor saved nor shared out by DeepSpeed.
        projection: linear layers into the teacher's spaces, by `vectors` and the student's layers.
    """

    teacher: EmbeddingModel

    def __init__(self, student: EmbeddingModel, teacher: EmbeddingModel, stage: StageConfig, seed: int):
        nn.Module.__init__(self)
        self.config, self.backbone, self.pooling = student.config, student.backbone, student.pooling
        self.__dict__["teacher"] = teacher
        self._learns_vectors = any(isinstance(loss, VectorDistillationConfig) for loss in stage.loss)
        counts = (one.backbone.config.num_hidden_layers for one in (student, teacher))
        matching = [loss for loss in stage.loss if isinstance(loss, StateMatchingConfig)]
        self._pairs = matching[0].pairs(*counts) if matching else []
        self.projection = nn.ModuleDict()
        if student.dimensions != teacher.dimensions:
            torch.manual_seed(seed)  # the same on every rank
            spaces = ["vectors"] if self._learns_vectors else []
            for name in spaces + [str(layer) for layer, _ in self._pairs]:
                linear = nn.Linear(student.dimensions, teacher.dimensions, bias=False)
                nn.init.orthogonal_(linear.weight)
                self.projection[name] = linear.to(self.backbone.device, self.backbone.dtype)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Vectors and distances of a packed batch in the order the texts were given, fp32."""
        if not self._pairs:
            return super().forward(batch)
        states = self.pooled_states(batch, all_layers=True)
        with torch.no_grad():
            taught = self.teacher.pooled_states(batch, all_layers=True)
        distances_P = torch.stack(
            [
                state_distance(self._projected(str(layer), states[layer - 1]), taught[theirs - 1])
                for layer, theirs in self._pairs
            ]
        ).mean(dim=0)
        distances_N1 = mean_by_text(distances_P.unsqueeze(1), batch.text_index_P, batch.pooled_lengths)
        vectors = self.pool(states if self.pooling.all_layers else states[-1], batch)
        return torch.cat([vectors, distances_N1[batch.order_N]], dim=1)

    def pool(self, states_PD: torch.Tensor | list[torch.Tensor], batch: PackedBatch) -> torch.Tensor:
        """Vectors (N, D), or of both spaces (N, D + T), fp32."""
        vectors_ND = super().pool(states_PD, batch)
        if "vectors" not in self.projection:
            return vectors_ND
        projected_NT = self._projected("vectors", vectors_ND).float()
        return torch.cat([vectors_ND, F.normalize(projected_NT, dim=-1)], dim=1)

    def _projected(self, name: str, states_PD: torch.Tensor) -> torch.Tensor:
        if name not in self.projection:
            return states_PD
        linear = self.projection.get_submodule(name)
        return linear(states_PD.to(self.backbone.dtype))

    @torch.no_grad()
    def taught_vectors(self, packed: PackedBatch, tokens_per_chunk: int | None) -> torch.Tensor | None:
        """The teacher's vectors (N, T); None where the stage learns none."""
        if not self._learns_vectors:
            return None
        chunks = [packed] if tokens_per_chunk is None else split_packed(packed, tokens_per_chunk)
        if len(chunks) == 1:
            return self.teacher(packed)
        return torch.cat([self.teacher(chunk) for chunk in chunks])[packed.order_N]


def teacher_folder(stage: StageConfig) -> Path | None:
    """Checkpoint of the teacher that a stage learns from; None: it has none."""
    return fetch(resolve(stage.teachers[0])) if stage.teachers else None


def other_reader(stage: StageConfig, contract: Contract, tokenizer: str) -> str | None:
    """The teacher's folder where it reads texts in another way than the student; None: it takes its tokens.

    Args:
        stage: with its losses.
        contract: of the student.
        tokenizer: of the student.

    Raises:
        CheckpointError: the folder is no checkpoint.
        ConfigError: states of tokens are compared, and the tokens are others.
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
    if not alike and any(isinstance(loss, StateMatchingConfig) for loss in stage.loss):
        raise ConfigError(
            f"stage {stage.name}: state_matching compares tokens one by one, and the teacher {folder} has "
            "another tokenizer or contract; take over its contract, or use vector_distillation"
        )
    return None if alike else str(folder)


def with_teacher(student: EmbeddingModel, stage: StageConfig, seed: int) -> EmbeddingModel:
    """The student, with the stage's teacher where it has one.

    Raises:
        CheckpointError: the teacher's folder is no checkpoint.
        ConfigError: student or teacher lack a layer that is named.
    """
    folder = teacher_folder(stage)
    if folder is None:
        return student
    backbone = student.backbone
    teacher = load_model(folder, dtype=backbone.dtype, device=backbone.device).embedder
    return TaughtModel(student, teacher, stage, seed)

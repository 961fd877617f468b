"""What a stage does with a batch, by its kind."""

from typing import Any, Protocol

import torch
from transformers import AutoConfig

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import resolve
from rayembed.contract.packing import PackedBatch, split_packed
from rayembed.data.collate import TrainingBatch
from rayembed.losses import MNTPConfig, VectorDistillationConfig
from rayembed.model.checkpoint import load_model, load_tokenizer
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.training.gradcache import encode_and_backward
from rayembed.training.masking import MaskedBatch, mask_batch, mask_id, masked_backward
from rayembed.training.stage_run import StageRun
from rayembed.training.step import StepOutput, contrastive_loss
from rayembed.training.timing import StepTimer


class Step(Protocol):
    """One stage's way from a batch to gradients."""

    def backward(self, engine: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""

    def forward(self, engine: Any, batch: TrainingBatch) -> torch.Tensor:
        """Any output of the engine that all its parameters take part in; called by all ranks."""


def step_of(run: StageRun, device: torch.device, dtype: torch.dtype) -> Step:
    """The step of a stage's kind.

    Raises:
        ConfigError, CheckpointError: the mask token or the teacher does not fit the model.
    """
    if run.stage.kind == "mntp":
        return MaskedStep(run, device)
    return ContrastiveStep(run, device, dtype)


class ContrastiveStep:
    """Encode, compare, and go back; also that of SimCSE, where each text is its own document."""

    def __init__(self, run: StageRun, device: torch.device, dtype: torch.dtype):
        self._run = run
        self._device = device
        self._budget = run.config.training.tokens_per_chunk
        self._teacher = _load_teacher(run, device, dtype)

    def backward(self, engine: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""
        batch = batch.to(self._device)
        with timer.phase("teacher"):
            teacher_ND = None if self._teacher is None else self._taught(self._teacher, batch.packed)

        def loss_of(vectors_ND: torch.Tensor) -> StepOutput:
            return contrastive_loss(vectors_ND, batch, self._run.stage, timer, teacher_ND)

        return encode_and_backward(engine, batch.packed, loss_of, timer, self._budget)

    def forward(self, engine: Any, batch: TrainingBatch) -> torch.Tensor:
        """Vectors of the batch; called by all ranks."""
        return engine(batch.to(self._device).packed)

    @torch.no_grad()
    def _taught(self, teacher: EmbeddingModel, packed: PackedBatch) -> torch.Tensor:
        chunks = [packed] if self._budget is None else split_packed(packed, self._budget)
        if len(chunks) == 1:
            return teacher(packed)
        return torch.cat([teacher(chunk) for chunk in chunks])[packed.order_N]


class MaskedStep:
    """Mask the batch's texts and predict what was there."""

    def __init__(self, run: StageRun, device: torch.device):
        [loss] = run.stage.loss
        assert isinstance(loss, MNTPConfig)
        tokenizer = load_tokenizer(run.stream.tokenizer)
        self._loss = loss
        self._mask, self._end = mask_id(tokenizer, loss), tokenizer.eos_token_id
        self._run = run
        self._device = device

    def backward(self, engine: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""
        budget = self._run.config.training.tokens_per_chunk
        return masked_backward(engine, self._masked(batch), len(self._run.stage.blend), timer, budget)

    def forward(self, engine: Any, batch: TrainingBatch) -> torch.Tensor:
        """Logits of the batch; called by all ranks."""
        masked = self._masked(batch)
        return engine(masked.packed, masked.before_M)

    def _masked(self, batch: TrainingBatch) -> MaskedBatch:
        seed = self._run.config.seed
        return mask_batch(batch, self._loss, mask=self._mask, end=self._end, seed=seed).to(self._device)


def _load_teacher(run: StageRun, device: torch.device, dtype: torch.dtype) -> EmbeddingModel | None:
    """The model whose vectors are learnt, if a loss names one.

    Raises:
        CheckpointError: it reads texts in another way, so that it cannot encode the student's tokens, or its
            vectors have another width than the student's.
    """
    folders = [loss.teacher for loss in run.stage.loss if isinstance(loss, VectorDistillationConfig)]
    if not folders:
        return None
    teacher = load_model(resolve(folders[0]), dtype=dtype)
    student = run.config.contract
    for key in ("instruction_template", "append_eos", "truncation"):
        if getattr(teacher.contract, key) != getattr(student, key):
            raise CheckpointError(
                f"teacher {folders[0]} has {key} {getattr(teacher.contract, key)!r}, this run "
                f"{getattr(student, key)!r}; train with the teacher's contract"
            )
    if teacher.tokenizer.get_vocab() != load_tokenizer(run.stream.tokenizer).get_vocab():
        raise CheckpointError(f"teacher {folders[0]} has another vocabulary; use one of the same base model")
    width, wanted = teacher.embedder.dimensions, AutoConfig.from_pretrained(run.base).hidden_size
    if width != wanted:
        raise CheckpointError(
            f"teacher {folders[0]} has vectors of width {width}, this run's model {wanted}; take a teacher "
            "of the same width, or use score_distillation"
        )
    return teacher.embedder.to(device).eval()

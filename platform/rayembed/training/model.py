"""The model of a stage, and its weights by name."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from rayembed.common.errors import CheckpointError
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.contract import CONTRACT_FILE, Contract
from rayembed.contract.ranges import VectorRanges
from rayembed.model.backbone import empty_backbone, load_backbone
from rayembed.model.checkpoint import POOLING_FILE, load_matching
from rayembed.model.compilation import compile_token_wise_parts
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora, keep_zeros
from rayembed.model.merging import write_merged
from rayembed.model.nf4 import use_nf4_weights


@dataclass(frozen=True)
class ModelSpec:
    """A base model and what is trained on top of it.

    Attributes:
        base: folder or hub id of the base model, with the adapters that were merged so far.
        original_base: base model of the run, which has the tokenizer and the language-model head.
        layers: of the base that are kept; None: all.
        settings: attention and pooling.
        lora: adapters; None trains the whole backbone.
        seed: of the fresh weights.
        keeps_zeros: weights of linear layers that are zero in the base stay zero.
    """

    base: Path | str
    original_base: Path | str
    layers: int | None
    settings: ModelConfig
    lora: LoraSettings | None
    seed: int
    keeps_zeros: bool = False

    @classmethod
    def of(cls, config: RunConfig, base: Path | str) -> "ModelSpec":
        """The model that a run begins with."""
        return cls(base, base, config.base_layers, config.model, config.lora, config.seed, config.keep_zeros)

    def build(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> EmbeddingModel:
        """The model, trainable parameters marked; the same on every rank."""
        torch.manual_seed(self.seed)
        quantised = self.lora is not None and self.lora.quantization is not None
        # Weights are packed from the numbers that are stored, as `write_merged` does.
        backbone = load_backbone(
            self.base, dtype="auto" if quantised else dtype,
            attention=self.settings.attention, layers=self.layers, device=device,
        )  # fmt: skip
        if quantised:
            use_nf4_weights(backbone)
            backbone.to(dtype)  # type: ignore[arg-type]  # transformers wraps it
        if self.lora is not None:
            attach_lora(backbone, self.lora)
        if self.keeps_zeros:
            keep_zeros(backbone)
        with torch.device(device):  # the published head takes 3 GB, which would lie in a node once a rank
            embedder = EmbeddingModel(backbone, self.settings)
        if head := self.head_weights():
            load_matching(embedder.pooling, head, f"pooling head of {self.original_base}")
        return embedder.to(device)

    def head_weights(self) -> dict[str, torch.Tensor]:
        """Weights of the pooling head that the base model brings along; none where it is no checkpoint."""
        file = Path(self.original_base) / POOLING_FILE
        return {name: value.float() for name, value in load_file(file).items()} if file.is_file() else {}

    def vector_ranges(self) -> VectorRanges | None:
        """Ranges of the vectors of the base model; none where they were not measured."""
        folder = Path(self.original_base)
        return Contract.load(folder).vector_ranges if (folder / CONTRACT_FILE).is_file() else None

    def empty(self) -> EmbeddingModel:
        """The model on the meta device: names and shapes, trainable parameters marked, and no weights."""
        backbone = empty_backbone(self.base, attention=self.settings.attention, layers=self.layers)
        with torch.device("meta"):
            if self.lora is not None:
                attach_lora(backbone, self.lora)
            return EmbeddingModel(backbone, self.settings)

    def write_backbone(self, folder: Path, trained: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Write the backbone with trained weights, adapters merged; no whole model is in memory."""
        write_merged(
            self.base, folder, trained, dtype=dtype, lora=self.lora,
            attention=self.settings.attention, layers=self.layers, keeps_zeros=self.keeps_zeros,
        )  # fmt: skip


def prepare_for_stage(model: nn.Module, settings: StageConfig, training: TrainingConfig) -> None:
    """Set what does not belong to the weights: dropout, activation checkpointing and compiled kernels."""
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, transformers.PreTrainedModel)
    for module in backbone.modules():
        if hasattr(module, "attention_dropout"):
            module.__dict__["attention_dropout"] = settings.attention_dropout
        elif hasattr(module, "attention_head_size"):  # BERT and its kin
            module.get_submodule("dropout").p = settings.attention_dropout  # type: ignore[assignment]
    if training.activation_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if isinstance(model, EmbeddingModel):
            model.checkpoints_pooling = True
    if training.compiled:
        compile_token_wise_parts(backbone)


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """fp32 copies of the trainable parameters by name; without those of which a rank has a part alone."""
    return {
        name: parameter.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not hasattr(parameter, "ds_id")
    }


def trainable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Full shapes of the trainable parameters by name."""
    return {
        name: getattr(parameter, "ds_shape", parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trainable_weights(
    model: nn.Module, weights: dict[str, torch.Tensor], origin: str, *, partly: bool = False
) -> None:
    """Copy weights into the trainable parameters of the same names.

    Called by all ranks where parameters lie in parts on them.

    Args:
        model: with its trainable parameters marked.
        weights: by name.
        origin: of the weights, subject of the sentence in errors.
        partly: whether parameters may keep what they have.

    Raises:
        CheckpointError: a name or a shape differs, so the weights belong to another model configuration.
    """
    shapes = trainable_shapes(model)
    missing = shapes.keys() - weights.keys()
    if missing and not partly:
        raise CheckpointError(f"{origin} does not fit this model: {min(missing)} is on one side only")
    check_weights(shapes, weights, origin)
    for name, parameter in model.named_parameters():
        if name in weights:
            with _full_value(parameter):
                parameter.copy_(weights[name])


def _full_value(parameter: nn.Parameter) -> contextlib.AbstractContextManager:
    """Inside, a parameter that lies in parts on all ranks is whole, and what rank 0 sets counts."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed  # for seconds; drivers, which share nothing, need not

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def check_weights(shapes: dict[str, torch.Size], weights: dict[str, torch.Tensor], origin: str) -> None:
    """Compare weights with the shapes of the trainable parameters, which may be more.

    Raises:
        CheckpointError: a parameter is not there or has another shape, so the weights belong to another model
            configuration.
    """
    for name in sorted(weights):
        if name not in shapes:
            raise CheckpointError(f"{origin} does not fit this model: {name} is on one side only")
        if shapes[name] != weights[name].shape:
            raise CheckpointError(
                f"{origin} does not fit this model: {name} has shape {tuple(weights[name].shape)}, "
                f"the model {tuple(shapes[name])}"
            )

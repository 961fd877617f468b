"""The model as it is trained: backbone with adapters, pooling head, and weights put in by name."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from rayembed.common.errors import CheckpointError
from rayembed.config import RunConfig, StageConfig, TrainingConfig
from rayembed.model.backbone import load_backbone
from rayembed.model.compilation import compile_token_wise_parts
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora


def build_trainable(config: RunConfig, base: Path | str, dtype: torch.dtype) -> EmbeddingModel:
    """The model of a run, trainable parameters marked; the same on every rank for the same seed."""
    torch.manual_seed(config.seed)
    backbone = load_backbone(base, dtype=dtype, attention=config.model.attention, layers=config.base_layers)
    if config.lora is not None:
        attach_lora(backbone, config.lora)
    return EmbeddingModel(backbone, config.model)


def prepare_for_stage(model: nn.Module, stage: StageConfig, training: TrainingConfig) -> None:
    """Set what does not belong to the weights: dropout, activation checkpointing and compiled kernels."""
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, PreTrainedModel)
    for module in backbone.modules():
        if hasattr(module, "attention_dropout"):
            module.__dict__["attention_dropout"] = stage.attention_dropout
    if training.activation_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if training.compiled:
        compile_token_wise_parts(backbone)


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """fp32 copies of the trainable parameters by name."""
    return {
        name: parameter.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trainable_weights(model: nn.Module, weights: dict[str, torch.Tensor], origin: str) -> None:
    """Copy weights into the trainable parameters of the same names.

    Raises:
        CheckpointError: a name or a shape differs, so the weights belong to another model configuration.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    differing = parameters.keys() ^ weights.keys()
    if differing:
        raise CheckpointError(f"{origin} does not fit this model: {sorted(differing)[0]} is on one side only")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise CheckpointError(
                f"{origin} does not fit this model: {name} has shape {tuple(weights[name].shape)}, "
                f"the model {tuple(parameter.shape)}"
            )
        parameter.copy_(weights[name])

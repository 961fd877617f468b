"""What a stage begins with: its kind of step, and its model with the weights that came before."""

import logging
from typing import Any

import torch
from torch import nn

from rayembed.common.errors import ConfigError
from rayembed.contract.packing import pack_ids
from rayembed.training import deepspeed
from rayembed.training.checkpoint import TrainingState
from rayembed.training.distillation import PROJECTION, with_teacher
from rayembed.training.handover import starting_weights
from rayembed.training.mntp import MaskedLanguageModel, MaskedStep, language_model_head
from rayembed.training.model import (
    load_trainable_weights,
    prepare_for_stage,
    trainable_shapes,
    trainable_weights,
)
from rayembed.training.stage import Stage
from rayembed.training.step import ContrastiveStep, Step

logger = logging.getLogger(__name__)


def step_of(stage: Stage, device: torch.device) -> Step:
    """The step of a stage's kind.

    Raises:
        ConfigError: the mask token does not fit the model.
    """
    if stage.settings.kind == "mntp":
        return MaskedStep(stage, device)
    return ContrastiveStep(stage, device)


def start_model(
    stage: Stage,
    resumed: TrainingState | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows_per_rank: int,
) -> Any:
    """The model wrapped by DeepSpeed, with the weights of the checkpoint, of the stages before, or fresh.

    Called by all ranks.

    Raises:
        ConfigError, CheckpointError: the teacher or a setting does not fit the model.
    """
    if stage.training.zero_stage == 0 and dtype is torch.bfloat16:
        raise ConfigError(
            "training.zero_stage 0 works in fp32 only; set it to 1, or training.precision to fp32"
        )
    if stage.training.chunk_tokens and stage.training.zero_stage < 2 and dtype is torch.bfloat16:
        logger.warning(
            "gradients of chunks add up in bf16, which loses a few percent where there are many; set "
            "training.zero_stage to 2 to add them up in fp32"
        )
    with deepspeed.partitioned_loading(stage.settings, stage.training, rows_per_rank, dtype):
        student = stage.model.build(dtype, device)
    embedder = with_teacher(student, stage.settings, stage.seed)
    _check_widths(stage, embedder.dimensions)
    model: nn.Module = embedder
    if stage.settings.kind == "mntp":
        head = language_model_head(stage.model.original_base, device)
        model = MaskedLanguageModel(embedder.backbone, head)
    if resumed:
        weights = resumed.weights
        load_trainable_weights(model, weights, "the checkpoint")
    else:
        # A stage without a pooling head leaves the head that came before it to the stages after it. A
        # projection goes on where the stage has the same teacher.
        own = trainable_shapes(model)
        taken = starting_weights(stage.finished, merges_adapters=stage.settings.adapters == "merge")
        left = {name for name in taken.keys() - own.keys() if name.startswith(("pooling.", PROJECTION))}
        left |= {
            name
            for name in taken.keys() & own.keys()
            if name.startswith(PROJECTION) and taken[name].shape != own[name]
        }
        begins = {name: value for name, value in taken.items() if name not in left}
        load_trainable_weights(model, begins, "the stages before", partly=True)
        # DeepSpeed makes its masters from rounded weights. In fp32 nothing is rounded, and weights that lie
        # in parts were rounded as they were read.
        weights = {} if dtype is torch.float32 else trainable_weights(model) | begins
    prepare_for_stage(model, stage.settings, stage.training)
    model.train()
    wrapped = deepspeed.wrap(model, stage.settings, stage.training, rows_per_rank=rows_per_rank, dtype=dtype)
    deepspeed.write_weights(wrapped, weights)
    return wrapped


def restore_moments(wrapped: Any, state: TrainingState, step: Step) -> None:
    """Put the optimizer where the checkpoint left it; called by all ranks.

    The pass that makes DeepSpeed ready has two tokens, so a resumed run needs no more memory than another.
    With one token, torch's compiler would build kernels for that alone.
    """
    deepspeed.prime_optimizer(wrapped, step.forward(wrapped, pack_ids([[0, 0]], [0])))
    deepspeed.write_weights(wrapped, state.weights)
    deepspeed.write_moments(wrapped, state.moments, state.optimizer_steps)


def _check_widths(stage: Stage, dimensions: int) -> None:
    cuts = stage.settings.matryoshka.dimensions if stage.settings.matryoshka else ()
    if cuts and max(cuts) > dimensions:
        raise ConfigError(
            f"stage {stage.name}: matryoshka.dimensions has {max(cuts)} and the model's vectors have "
            f"{dimensions}; lower it"
        )

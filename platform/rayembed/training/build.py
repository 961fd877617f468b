"""The DeepSpeed engine of a stage, with the weights it starts from."""

from typing import Any

import torch
from torch import nn

from rayembed.common.errors import ConfigError
from rayembed.data.collate import TrainingBatch
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.training import engine as deepspeed_engine
from rayembed.training.checkpointing import TrainingState
from rayembed.training.handover import starting_weights
from rayembed.training.masking import MaskedLanguageModel, language_model_head
from rayembed.training.model import (
    build_trainable,
    load_trainable_weights,
    prepare_for_stage,
    trainable_weights,
)
from rayembed.training.stage_run import StageRun
from rayembed.training.steps import Step


def build_engine(run: StageRun, resumed: TrainingState | None, dtype: torch.dtype, rows_per_rank: int) -> Any:
    """Model with the weights of the checkpoint, of the stages before, or fresh, inside a DeepSpeed engine.

    Called by all ranks.
    """
    training = run.config.training
    if training.zero_stage == 0 and dtype is torch.bfloat16:
        raise ConfigError(
            "training.zero_stage 0 works in fp32 only; set it to 1, or training.precision to fp32"
        )
    embedder = build_trainable(run.config, run.base, dtype)
    _check_widths(run, embedder)
    model: nn.Module = embedder
    if run.stage.kind == "mntp":
        model = MaskedLanguageModel(embedder.backbone, language_model_head(run.original_base))
    own = trainable_weights(model)
    if resumed:
        load_trainable_weights(model, resumed.weights, "the checkpoint")
    else:
        # A stage without a pooling head leaves the head that came before it to the stages after it.
        taken = starting_weights(run.config, run.stage_index, run.previous)
        heads = {name for name in taken.keys() - own.keys() if name.startswith("pooling.")}
        begins = own | {name: value for name, value in taken.items() if name not in heads}
        load_trainable_weights(model, begins, "the stages before")
    weights = trainable_weights(model)
    prepare_for_stage(model, run.stage, training)
    model.train()
    engine = deepspeed_engine.create_engine(
        model, run.stage, training, rows_per_rank=rows_per_rank, dtype=dtype
    )
    deepspeed_engine.write_weights(engine, weights)
    return engine


def restore_moments(engine: Any, state: TrainingState, step: Step, batch: TrainingBatch) -> None:
    """Put the optimizer where the checkpoint left it; called by all ranks with the next batch."""
    deepspeed_engine.prime_optimizer(engine, step.forward(engine, batch))
    deepspeed_engine.write_weights(engine, state.weights)
    deepspeed_engine.write_moments(engine, state.moments, state.optimizer_steps)


def _check_widths(run: StageRun, embedder: EmbeddingModel) -> None:
    cuts = run.stage.matryoshka.dimensions if run.stage.matryoshka else ()
    if cuts and max(cuts) > embedder.dimensions:
        raise ConfigError(
            f"stage {run.stage.name}: matryoshka.dimensions has {max(cuts)} and the model's vectors have "
            f"{embedder.dimensions}; lower it"
        )

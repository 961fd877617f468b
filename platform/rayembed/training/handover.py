"""What a stage takes over from those before it: trained weights, and adapters merged into the base model."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_directory
from rayembed.config import RunConfig
from rayembed.model.checkpoint import load_tokenizer
from rayembed.model.lora import merge_lora
from rayembed.training.checkpointing import load_weights
from rayembed.training.model import build_trainable, load_trainable_weights

logger = logging.getLogger(__name__)

_ADAPTER = "lora_"

Weights = dict[str, torch.Tensor]


def carried_weights(config: RunConfig, trained: Sequence[Path]) -> Weights:
    """Trainable weights as the finished stages leave them: the newest of each name.

    A stage that merged the adapters before it began with new ones, so those are dropped there. A stage that
    trains no pooling head leaves the one before it in place.

    Args:
        config: the run.
        trained: checkpoint folders of the finished stages, in order.
    """
    weights: Weights = {}
    for stage, folder in zip(config.stages, trained, strict=False):
        if stage.adapters == "merge":
            weights = without_adapters(weights)
        weights |= load_weights(folder)
    return weights


def without_adapters(weights: Weights) -> Weights:
    """The weights that do not belong to adapters."""
    return {name: value for name, value in weights.items() if _ADAPTER not in name}


def starting_weights(config: RunConfig, stage_index: int, trained: Sequence[Path]) -> Weights:
    """Weights that a stage begins with, as far as earlier stages decide them."""
    weights = carried_weights(config, trained[:stage_index])
    return without_adapters(weights) if config.stages[stage_index].adapters == "merge" else weights


def merge_into_base(
    config: RunConfig, base: Path | str, weights: Weights, original: Path | str, folder: Path
) -> Path:
    """Write a base model with the trained adapters added to its weights; an existing one is kept.

    The sum is taken and stored in fp32, so that nothing of the update is rounded away.

    Args:
        config: the run.
        base: base model that the adapters were trained on.
        weights: trainable weights of the stages so far.
        original: base model of the run, which has the tokenizer.
        folder: where to write.
    """
    if folder.is_dir():
        return folder
    embedder = build_trainable(config, base, torch.float32)
    own = {name for name, parameter in embedder.named_parameters() if parameter.requires_grad}
    adapters = {name for name in own if _ADAPTER in name}
    if not adapters <= weights.keys():
        raise CheckpointError(f"no trained adapters to merge into {base}; train a stage with lora before it")
    merging = {name: weights[name] for name in adapters}
    heads = {name: parameter for name, parameter in embedder.named_parameters() if name in own - adapters}
    load_trainable_weights(embedder, merging | {n: p.detach() for n, p in heads.items()}, "the stages before")
    merge_lora(embedder.backbone)
    with atomic_directory(folder) as temporary:
        embedder.backbone.save_pretrained(temporary)
        load_tokenizer(original).save_pretrained(temporary)
    logger.info("adapters merged into %s", folder)
    return folder

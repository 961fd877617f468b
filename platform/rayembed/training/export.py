"""From a finished stage to the model folder that is evaluated and served."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from rayembed.config import RunConfig
from rayembed.contract import Contract
from rayembed.data.sources import SOURCES
from rayembed.model.base_model import PACKAGED_MODELS
from rayembed.model.checkpoint import load_tokenizer, save_model
from rayembed.model.lora import merge_lora
from rayembed.training.checkpointing import next_step
from rayembed.training.handover import carried_weights
from rayembed.training.model import build_trainable, load_trainable_weights, trainable_weights

logger = logging.getLogger(__name__)


def export_model(
    config: RunConfig, base: Path | str, original_base: Path | str, trained: Sequence[Path], folder: Path
) -> str:
    """Merge the trained adapters into the base model and write the model folder; returns its digest.

    Merging happens in fp32, so that the folder holds the base weights plus the exact update.

    Args:
        config: the run.
        base: base model of the last stage, with the adapters that were merged before it.
        original_base: base model of the run, which has the tokenizer.
        trained: checkpoint folders of the stages to export, in order.
        folder: where to write.

    Raises:
        CheckpointError: a checkpoint is damaged or belongs to another configuration.
    """
    embedder = build_trainable(config, base, torch.float32)
    weights = trainable_weights(embedder) | carried_weights(config, trained)
    load_trainable_weights(embedder, weights, "the last stage")
    merge_lora(embedder.backbone)
    sources = sorted({entry.source for stage in config.stages for entry in stage.blend})
    provenance = {
        "base_model": config.base_model,
        "base_layers": config.base_layers,
        "stages": [
            {"name": stage.name, "kind": stage.kind, "steps": stage.steps, "kept_step": next_step(checkpoint)}
            for stage, checkpoint in zip(config.stages, trained, strict=False)
        ],
        "sources": sources,
        "licences": licences(config.base_model, sources),
    }
    digest = save_model(
        folder,
        embedder,
        load_tokenizer(original_base),
        trained_contract(config),
        provenance=provenance,
        recipe=config.to_yaml(),
    )
    logger.info("model %s is in %s", digest[:12], folder)
    return digest


def trained_contract(config: RunConfig) -> Contract:
    """The recipe's contract with the instructions that its stages train."""
    trained_tasks = {"instructions": instructions(config), "symmetric": symmetric_tasks(config)}
    return config.contract.model_copy(update=trained_tasks)


def instructions(config: RunConfig) -> dict[str, str]:
    """Source name -> instruction it was trained with; "query" is the one of the first retrieval source."""
    known = dict(config.contract.instructions)
    for stage in config.stages:
        for entry in stage.blend:
            if entry.instruction:
                known.setdefault(entry.source, entry.instruction)
                known.setdefault("query", entry.instruction)
    return known


def licences(base_model: str, sources: Sequence[str]) -> dict[str, str]:
    """Licence of the base model and of each source, of those that this library knows."""
    known = {name: SOURCES[name].licence for name in sources if name in SOURCES}
    if base_model in PACKAGED_MODELS:
        known[base_model] = PACKAGED_MODELS[base_model].licence
    return known


def symmetric_tasks(config: RunConfig) -> tuple[str, ...]:
    """Names in `instructions` whose documents carried the instruction in training."""
    trained = {entry.source for stage in config.stages for entry in stage.blend if entry.symmetric}
    return tuple(sorted(trained.union(config.contract.symmetric)))

"""Does the run fit this machine? Asked before anything is written.

The memory estimate counts weights, trainable state and the activations of one worker's largest step. It is a
rule of thumb for a clear early refusal, not a promise.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig

from rayembed.common.errors import ResourceError
from rayembed.config import RunConfig
from rayembed.model.pooling import build_pooling
from rayembed.model.precision import resolve_device, resolve_precision

GIBIBYTE = 2**30
_PROCESS_BYTES = 1.0 * GIBIBYTE  # interpreter and libraries of one worker
_BYTES_PER_TRAINABLE = 4 * 4  # gradient, fp32 master weight and two Adam moments
_ACTIVATIONS_PER_LAYER = 34  # values kept for the backward pass, per token and hidden unit, with adapters


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run needs."""

    memory_per_worker: float
    disk: float


def estimate(config: RunConfig, base: Path | str, tokens: int | None = None) -> Estimate:
    """Estimate memory of one worker and disk of the run folder.

    Args:
        config: the run.
        base: its base model.
        tokens: of a worker's step; None: those of the largest batch if all texts had the maximum length.
    """
    backbone = AutoConfig.from_pretrained(base)
    hidden, layers = backbone.hidden_size, config.base_layers or backbone.num_hidden_layers
    key_value = hidden * backbone.num_key_value_heads // backbone.num_attention_heads
    per_layer = 2 * hidden * (hidden + key_value) + 3 * hidden * backbone.intermediate_size
    backbone_size = backbone.vocab_size * hidden + layers * per_layer
    head_size = _pooling_size(config, hidden, layers)
    adapter_size = 0
    if config.lora:
        widths = 4 * (hidden + hidden) + 3 * (hidden + backbone.intermediate_size)
        adapter_size = layers * config.lora.rank * widths
    trainable = head_size + (adapter_size if config.lora else backbone_size)
    dtype = resolve_precision(config.training.precision, resolve_device())
    weight_bytes = 2 if dtype is torch.bfloat16 else 4
    if tokens is None:
        tokens = _most_tokens(config)
    if config.training.tokens_per_chunk is not None:
        tokens = min(tokens, max(config.training.tokens_per_chunk, config.contract.max_length))
    kept = layers * _ACTIVATIONS_PER_LAYER
    if config.training.activation_checkpointing:
        kept = layers + _ACTIVATIONS_PER_LAYER  # each layer's input, and one layer at a time in full
    activations = tokens * hidden * kept * weight_bytes
    memory = (backbone_size + head_size + adapter_size) * weight_bytes + trainable * _BYTES_PER_TRAINABLE
    copies = config.training.keep_checkpoints + 2 + (config.validation is not None)
    checkpoints = copies * len(config.stages) * trainable * 12
    models = 2 * (backbone_size + head_size) * 4
    return Estimate(memory + activations + _PROCESS_BYTES, checkpoints + models)


def check_resources(config: RunConfig, base: Path | str, folder: Path) -> Estimate:
    """Refuse a run that cannot fit.

    Raises:
        ResourceError: too little disk for the run folder, or too little memory on a machine without GPUs.
    """
    needed = estimate(config, base)
    folder.mkdir(parents=True, exist_ok=True)
    free_disk = shutil.disk_usage(folder).free
    if needed.disk > free_disk:
        raise ResourceError(
            f"{folder} has {free_disk / GIBIBYTE:.1f} GiB free and the run needs about "
            f"{needed.disk / GIBIBYTE:.1f} GiB; free some or set output to another disk"
        )
    memory = needed.memory_per_worker * config.training.workers
    available = psutil.virtual_memory().available
    if not torch.cuda.is_available() and memory > available:
        raise ResourceError(
            f"training needs about {memory / GIBIBYTE:.1f} GiB of memory and {available / GIBIBYTE:.1f} GiB "
            "are free; set training.tokens_per_chunk, or lower contract.max_length or training.workers"
        )
    return needed


def _most_tokens(config: RunConfig) -> int:
    texts_per_row = max(2 + entry.negatives_per_query for stage in config.stages for entry in stage.blend)
    rows = max(-(-stage.batch_size // config.training.workers) for stage in config.stages)
    return rows * texts_per_row * config.contract.max_length


def _pooling_size(config: RunConfig, hidden: int, layers: int) -> int:
    with torch.device("meta"):
        head = build_pooling(config.model.pooling, hidden, layers)
    return sum(parameter.numel() for parameter in head.parameters())

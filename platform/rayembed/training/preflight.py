"""Does the run fit this machine? Asked before anything is trained.

Memory means what weights, gradients and the optimizer's state take at the least. What a step takes on top,
`rayembed train --dry-run` measures by taking one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, AutoModel

from rayembed.common.device import resolve_device
from rayembed.common.errors import ResourceError
from rayembed.config.run import RunConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora
from rayembed.model.precision import resolve_precision
from rayembed.training.model import ModelSpec

GIBIBYTE = 2**30
_PROCESS_BYTES = 1.0 * GIBIBYTE  # interpreter and libraries of one worker
_BYTES_PER_TRAINABLE = 4 * 4  # gradient, fp32 master weight and two Adam moments


@dataclass(frozen=True)
class Needs:
    """Bytes that a run needs: one worker's memory at the least, and the disk of the run folder."""

    memory: float
    disk: float

    @classmethod
    def of(cls, config: RunConfig, model: ModelSpec) -> "Needs":
        """Of a run that begins with the model."""
        every, trainable = parameter_counts(model)
        dtype = resolve_precision(config.training.precision, resolve_device())
        memory = every * dtype.itemsize + trainable * _BYTES_PER_TRAINABLE + _PROCESS_BYTES
        copies = config.training.keep_checkpoints + 2 + (config.validation is not None)
        return cls(memory, copies * len(config.stages) * trainable * 12 + 2 * every * 4)


def check_resources(config: RunConfig, model: ModelSpec, folder: Path) -> Needs:
    """Refuse a run that cannot fit.

    Raises:
        ResourceError: too little disk for the run folder, or too little memory on a machine without GPUs.
    """
    needs = Needs.of(config, model)
    folder.mkdir(parents=True, exist_ok=True)
    free_disk = shutil.disk_usage(folder).free
    if needs.disk > free_disk:
        raise ResourceError(
            f"{folder} has {free_disk / GIBIBYTE:.1f} GiB free and the run needs about "
            f"{needs.disk / GIBIBYTE:.1f} GiB; free some or set output to another disk"
        )
    memory = needs.memory * config.training.workers
    available = psutil.virtual_memory().available
    if not torch.cuda.is_available() and memory > available:
        raise ResourceError(
            f"training needs at least {memory / GIBIBYTE:.1f} GiB of memory and "
            f"{available / GIBIBYTE:.1f} GiB are free; lower training.workers, or train a smaller "
            "model or adapters (lora)"
        )
    return needs


def parameter_counts(model: ModelSpec) -> tuple[int, int]:
    """Parameters of a model and those of them that are trained; no weight is loaded."""
    settings = AutoConfig.from_pretrained(model.base)
    settings.num_hidden_layers = model.layers or settings.num_hidden_layers
    with torch.device("meta"):
        backbone = AutoModel.from_config(settings)
        if model.lora is not None:
            attach_lora(backbone, model.lora)
        parameters = list(EmbeddingModel(backbone, model.settings).parameters())
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )

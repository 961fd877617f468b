"""Does the run fit? On paper, from shapes alone: memory of a worker and disk of the run folder.

Activations are counted, not guessed: the model runs on torch's meta device, and the tensors that it keeps for
the backward pass are added up. `trial` takes a real step; a test holds the two against each other.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from rayembed.common.errors import ResourceError
from rayembed.config.run import RunConfig
from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import PackedLengths, pack_ids
from rayembed.model.nf4 import BITS_PER_WEIGHT
from rayembed.model.precision import resolve_precision
from rayembed.training.adamw_8bit import BYTES_PER_MOMENT
from rayembed.training.model import ModelSpec
from rayembed.training.resources import nominal_peak

GIBIBYTE = 2**30
_PROCESS_BYTES = {"cpu": 1.0 * GIBIBYTE, "cuda": 0.6 * GIBIBYTE}  # interpreter and libraries; CUDA's context
_NCCL_BYTES = 0.5 * GIBIBYTE  # channels and their buffers, where more than one GPU takes part
_BUCKET = 500_000_000  # elements that DeepSpeed reduces or gathers at a time, its default
_REACHED = 0.43  # of the peak: LoRA of a 7B model on one H100, NeMo Automodel's performance summary
_TEXT = 256  # tokens of the text that is counted; short ones take another kernel
_CHUNK = 4096  # tokens of the chunk in which a head is counted; few take another way through it


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker.

    Attributes:
        weights: of the whole model.
        gradients: in the model's number format, and in fp32 where chunks add up at ZeRO 2 and 3.
        optimizer: master weights in fp32, and two moments of Adam.
        communication: buckets of DeepSpeed, and NCCL.
        activations: of one chunk at its largest.
        process: interpreter or CUDA context.
    """

    weights: float
    gradients: float
    optimizer: float
    communication: float
    activations: float
    process: float

    @property
    def total(self) -> float:
        """All together."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / GIBIBYTE:.2f}" for name, value in vars(self).items())
        return f"{self.total / GIBIBYTE:.1f} GiB ({parts})"


def memory_of_worker(model: ModelSpec, training: TrainingConfig, *, device: str, tokens: int = 0) -> Memory:
    """What a worker needs.

    Args:
        model: that is trained.
        training: with `activation_checkpointing` and `tokens_per_chunk` decided.
        device: cpu or cuda; auto formats count as bf16 on cuda, and as the one of this processor on cpu.
        tokens: of a worker's longest batch; 0 leaves the activations out.
    """
    every, trainable = parameter_counts(model)
    dtype = number_format(training, device)
    workers = training.workers
    split = {stage: workers if training.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    sums_in_fp32 = training.tokens_per_chunk and training.zero_stage >= 2 and dtype is torch.bfloat16
    accumulators = 4 if sums_in_fp32 else 0  # as `deepspeed_config` sets them
    master = 4 if dtype is not torch.float32 else 0
    moments = 2 * (BYTES_PER_MOMENT if training.optimizer == "adamw_8bit" else 4)
    buckets = 2 * min(trainable, _BUCKET) * dtype.itemsize if workers > 1 or training.zero_stage > 0 else 0
    chunk = min(tokens, training.chunk_tokens or tokens)
    weights = float(every * dtype.itemsize)
    if model.lora and model.lora.quantization:
        weights -= linear_weights(model) * (dtype.itemsize - BITS_PER_WEIGHT / 8)
    return Memory(
        weights=weights / split[3],
        gradients=trainable * (dtype.itemsize + accumulators) / split[2],
        optimizer=trainable * (master + moments) / split[1],
        communication=buckets + (_NCCL_BYTES if device == "cuda" and workers > 1 else 0),
        activations=chunk * activation_bytes(model, training, dtype) if tokens else 0,
        process=_PROCESS_BYTES[device],
    )


def step_seconds(model: ModelSpec, training: TrainingConfig, tokens: int) -> float | None:
    """Seconds of a step on a GPU whose type is named, at the share of its peak that good kernels reach.

    A token costs two operations a parameter forward, two backward, and two more for each that is trained.
    GradCache and checkpointing each add a forward pass. Attention within texts is left out; it is a few
    percent at 512 tokens.

    Returns:
        None without `accelerator_type`, or with one whose peak is not known here.
    """
    peak = nominal_peak(training.accelerator_type or "")
    if peak is None:
        return None
    every, trainable = parameter_counts(model)
    embeddings = model.empty().backbone.get_input_embeddings().get_parameter("weight").numel()
    computing = every - embeddings
    again = bool(training.activation_checkpointing) + (training.tokens_per_chunk is not None)
    operations = 2 * computing * (2 + again) + 2 * trainable
    return tokens * operations / (peak * _REACHED)


def number_format(training: TrainingConfig, device: str) -> torch.dtype:
    """Number format of the weights on a device that need not be here."""
    if device == "cuda" and training.precision == "auto":
        return torch.bfloat16
    return resolve_precision(training.precision, torch.device("cpu"))


def activation_bytes(model: ModelSpec, training: TrainingConfig, dtype: torch.dtype) -> float:
    """Bytes that a token takes in the backward pass at its largest moment, all tokens pooled.

    For L layers that keep l bytes each, their inputs of i bytes, and a head that keeps h:
        without checkpointing   L * l + h, and the gradients of one part, at most max(l, h)
        with it                 L * i + max(l, h) for the part that is computed again, and its gradients
    """
    empty = model.empty()
    layers = empty.backbone.config.num_hidden_layers
    one, head = _kept_bytes(replace(model, layers=1), dtype)
    two, _ = _kept_bytes(replace(model, layers=min(2, layers)), dtype)
    layer, around = two - one, one - (two - one)
    if layers == 1:
        layer, around = one, 0.0
    largest = max(layer, head)
    if not training.activation_checkpointing:
        return layers * layer + around + head + largest
    width = empty.dimensions * dtype.itemsize
    return layers * width + around + 2 * largest


def _kept_bytes(model: ModelSpec, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a token that backbone and head keep.

    The plain attention of the meta device keeps scores, which the kernels that train do not. They grow with
    the square of a text's length n and vanish from two measurements: where a backbone keeps a * n + b * n * n
    bytes, (4 * kept(n) - kept(2 * n)) / (2 * n) is a. A head may keep something once: of a * n + c bytes,
    (kept(2 * n) - kept(n)) / n is a.
    """
    embedder = model.empty().to(dtype).train()
    pooling, width = embedder.pooling, embedder.dimensions
    layers = embedder.backbone.config.num_hidden_layers

    def backbone(tokens: int) -> int:
        batch = pack_ids([[0] * tokens], [0]).to("meta")
        return _kept(
            embedder.backbone,
            embedder,
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.position_ids_T.unsqueeze(0),
            use_cache=False,
            packed_lengths=batch.lengths,
        )

    def head(tokens: int) -> int:
        states = [torch.zeros(tokens, width, dtype=dtype, device="meta", requires_grad=True)] * layers
        texts = torch.zeros(tokens, dtype=torch.int64, device="meta")
        lengths = PackedLengths.of([tokens]).to("meta")
        return _kept(pooling, embedder, states if pooling.all_layers else states[0], texts, lengths)

    return (
        (4 * backbone(_TEXT) - backbone(2 * _TEXT)) / (2 * _TEXT),
        (head(2 * _CHUNK) - head(_CHUNK)) / _CHUNK,
    )


def _kept(function: Callable[..., Any], model: nn.Module, *arguments: Any, **options: Any) -> int:
    """Bytes that a call keeps for its backward pass, weights of the model not counted."""
    sizes: dict[int, int] = {}
    held = [parameter.untyped_storage() for parameter in model.parameters()]
    weights = {storage._cdata for storage in held}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            held.append(storage)  # an address that is free could be given to another tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*arguments, **options)
    return sum(sizes.values())


def disk_of_run(config: RunConfig, model: ModelSpec) -> float:
    """Bytes of the run folder: checkpoints of all stages, the untrained and the trained model."""
    every, trainable = parameter_counts(model)
    copies = config.training.keep_checkpoints + 2 + (config.validation is not None)
    return copies * len(config.stages) * trainable * 12 + 2 * every * 4


def check_disk(config: RunConfig, model: ModelSpec, folder: Path) -> None:
    """Refuse a run whose files cannot fit.

    Raises:
        ResourceError: too little disk for the run folder.
    """
    needed = disk_of_run(config, model)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{folder} has {free / GIBIBYTE:.1f} GiB free and the run needs about "
            f"{needed / GIBIBYTE:.1f} GiB; free some or set output to another disk"
        )


def check_memory(
    model: ModelSpec, training: TrainingConfig, device: torch.device, neighbours: int = 1
) -> None:
    """Refuse a model that cannot fit; called by each worker before it loads the model.

    Args:
        model: that is trained.
        training: how.
        device: of this worker.
        neighbours: workers of this node, which share its memory; those on GPUs have one each.

    Raises:
        ResourceError: weights, gradients and optimizer alone are more than what is free.
    """
    needed = memory_of_worker(model, training, device=device.type).total
    if device.type == "cuda":
        free, where = float(torch.cuda.mem_get_info(device)[0]), "this GPU"
    else:
        free, where, needed = float(psutil.virtual_memory().available), "this node", needed * neighbours
    if needed > free:
        raise ResourceError(
            f"training needs at least {needed / GIBIBYTE:.1f} GiB of memory and {where} has "
            f"{free / GIBIBYTE:.1f} GiB free; raise training.zero_stage or workers, lower the workers of a "
            "node, or train a smaller model or adapters (lora)"
        )


def linear_weights(model: ModelSpec) -> int:
    """Weights of the backbone's linear layers, adapters and biases left out."""
    backbone = replace(model, lora=None).empty().backbone
    return sum(layer.weight.numel() for layer in backbone.modules() if isinstance(layer, nn.Linear))


def parameter_counts(model: ModelSpec) -> tuple[int, int]:
    """Parameters of a model and those of them that are trained; no weight is loaded."""
    parameters = list(model.empty().parameters())
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )

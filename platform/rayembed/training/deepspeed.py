"""DeepSpeed around a model: settings, and the optimizer's state as plain named tensors.

DeepSpeed's own checkpoints are pickled and tied to the number of ranks. The functions here read and write
master weights and Adam moments parameter by parameter through its public accessors, which works at every ZeRO
stage and lets another number of ranks continue.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn
from torch.optim import AdamW
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from rayembed.common.ray_compat import disable_shared_memory_transport
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.training.adamw_8bit import adamw_8bit, pack, unpacked

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_WITHOUT_DECAY = ("latents", "layer_embeddings")  # besides norms and biases, which have one dimension


def deepspeed_config(
    stage: StageConfig, training: TrainingConfig, rows_per_rank: int, dtype: torch.dtype
) -> dict:
    """DeepSpeed settings; gradient clipping is spelled out because the library's own default is not off.

    Chunks add up their gradients. In bf16 the sum of 200 was 1 to 5 percent off, in fp32 0.3 percent. ZeRO 1
    would take another optimizer for that, so it is done from ZeRO 2 on.
    """
    chunks_in_fp32 = training.chunk_tokens and training.zero_stage >= 2 and dtype is torch.bfloat16
    return {
        **training.deepspeed,
        "train_micro_batch_size_per_gpu": rows_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": stage.gradient_clipping,
        "zero_optimization": training.deepspeed.get("zero_optimization", {}) | {"stage": training.zero_stage},
        "data_types": {"grad_accum_dtype": "fp32" if chunks_in_fp32 else None},
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


@contextlib.contextmanager
def partitioned_loading(
    stage: StageConfig, training: TrainingConfig, rows_per_rank: int, dtype: torch.dtype
) -> Iterator[None]:
    """At ZeRO stage 3, a backbone that is loaded inside lies in parts on all ranks from the start.

    transformers then builds it under DeepSpeed's `zero.Init` and hands out one layer after the other, which
    rank 0 alone has read; so a model may be larger than a GPU. Entered by all ranks.
    """
    if training.zero_stage < 3:
        yield
        return
    config = HfDeepSpeedConfig(deepspeed_config(stage, training, rows_per_rank, dtype))
    assert config.is_zero3()
    try:
        yield
    finally:
        unset_hf_deepspeed_config()


def parameter_groups(model: nn.Module, stage: StageConfig) -> list[dict[str, Any]]:
    """Trainable parameters, the pooling head with its own learning rate and after the backbone.

    `base_rate` of a group is the rate that the schedule multiplies. Weight decay pulls at matrices of linear
    layers and of token embeddings only: norms, biases and latents have a scale of their own.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _WITHOUT_DECAY
            groups[name.startswith("pooling."), decays * stage.weight_decay].append(parameter)
    rates = {False: stage.learning_rate, True: stage.pooling_learning_rate or stage.learning_rate}
    return [
        {"params": groups[in_head, decay], "base_rate": rates[in_head], "weight_decay": decay}
        for in_head, decay in sorted(groups)
    ]


def wrap(
    model: nn.Module, stage: StageConfig, training: TrainingConfig, *, rows_per_rank: int, dtype: torch.dtype
) -> Any:
    """Wrap a model in DeepSpeed with AdamW over its trainable parameters; called by all ranks."""
    if get_accelerator().device_name() == "cpu":
        disable_shared_memory_transport()
    if training.zero_stage == 3:  # where DeepSpeed leaves the number format of a model in parts to its maker
        for parameter in model.parameters():
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(dtype)
    optimizer_class = adamw_8bit() if training.optimizer == "adamw_8bit" else partial(AdamW, fused=True)
    optimizer = optimizer_class(parameter_groups(model, stage), lr=stage.learning_rate)
    wrapped, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(stage, training, rows_per_rank, dtype)
    )
    _allocate_moments(wrapped)
    return wrapped


def _allocate_moments(wrapped: Any) -> None:
    """Make Adam's moments exist before the first step.

    DeepSpeed 0.19 links moments to parameters after the first group of the first step, when later groups
    would have none yet, and would then never find theirs.
    """
    adam = _adam(wrapped)
    for index, group in enumerate(adam.param_groups):
        for position, parameter in enumerate(group["params"]):
            if not isinstance(adam, AdamW):
                adam.init_state(group, parameter, index, position)
                continue
            adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def set_learning_rate(wrapped: Any, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in wrapped.optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def learning_rate(wrapped: Any) -> float:
    """Rate of the backbone."""
    return wrapped.optimizer.param_groups[0]["lr"]


def take_step(wrapped: Any) -> float | torch.Tensor:
    """Clip the gradient and move the weights, unless the gradient is not finite; called by all ranks.

    From ZeRO stage 1 on, DeepSpeed takes the norm over all ranks' parts before its first group moves and
    discards the step when it is not finite. Without ZeRO it does not look, so it is done here.

    Returns:
        Norm of the gradient before clipping, the same on all ranks, so that they decide alike without asking
        one another. When it is not finite, weights and moments are as before and the gradient is cleared.
    """
    if wrapped.zero_optimization_stage() == 0:
        gradients = [p.grad for _, p in trainable_parameters(wrapped) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            wrapped.zero_grad()
            return norm
        wrapped.step()
        return norm
    wrapped.step()
    return wrapped.get_global_grad_norm()


def optimizer_steps(wrapped: Any) -> int:
    """Steps that Adam has taken; fewer than those of the plan when batches were skipped."""
    return int(max((float(state["step"]) for state in _adam(wrapped).state.values()), default=0.0))


def trainable_parameters(wrapped: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Named trainable parameters in a fixed order."""
    return (
        (name, parameter) for name, parameter in wrapped.module.named_parameters() if parameter.requires_grad
    )


def read_state(wrapped: Any, *, keep: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """fp32 master weights by name, Adam moments as "moment.name"; called by all ranks.

    A rank that does not `keep` them takes part in gathering each and gets nothing: three times the trainable
    weights in fp32 would lie in the memory of a node once for each of its ranks.
    """
    weights, moments = {}, {}
    # DeepSpeed finds moments from the first step on. Skipped batches may put it off; till then they are zero.
    moved = optimizer_steps(wrapped) > 0
    with moments_in_fp32(wrapped):
        for name, parameter in trainable_parameters(wrapped):
            weight = _own_or(parameter, safe_get_full_fp32_param(parameter))
            if keep:
                weights[name] = weight.to("cpu", copy=True)
            for moment in ADAM_MOMENTS:
                full = safe_get_full_optimizer_state(parameter, moment) if moved else None
                if not moved:
                    full = torch.zeros_like(weight)
                elif full is None:
                    full = _adam(wrapped).state[parameter][moment]
                if keep:
                    moments[f"{moment}.{name}"] = full.detach().to("cpu", copy=True)
    return weights, moments


@torch.no_grad()
def write_weights(wrapped: Any, weights: dict[str, torch.Tensor]) -> None:
    """Set the fp32 master weights that are given; called by all ranks.

    The same weights must have been loaded into the model before it was wrapped: DeepSpeed rounds its
    master weights to the model's number format, and this undoes that.
    """
    for name, parameter in trainable_parameters(wrapped):
        if name in weights and safe_get_full_fp32_param(parameter) is not None:
            _set_partitioned(parameter, weights[name], None)


@torch.no_grad()
def write_moments(wrapped: Any, moments: dict[str, torch.Tensor], optimizer_steps: int) -> None:
    """Set Adam's moments and step count; called by all ranks after `prime_optimizer` made them."""
    with moments_in_fp32(wrapped):
        for name, parameter in trainable_parameters(wrapped):
            partitioned = safe_get_full_fp32_param(parameter) is not None
            for moment in ADAM_MOMENTS:
                value = moments[f"{moment}.{name}"]
                if partitioned:
                    _set_partitioned(parameter, value, moment)
                else:
                    _adam(wrapped).state[parameter][moment].copy_(value)
    for state in _adam(wrapped).state.values():
        if torch.is_tensor(state["step"]):
            state["step"].fill_(float(optimizer_steps))
        else:
            state["step"] = optimizer_steps


def prime_optimizer(wrapped: Any, vectors: torch.Tensor) -> None:
    """Take one step at rate zero with zero gradient, so that Adam allocates its moments; called by all ranks.

    Args:
        wrapped: a model that has taken no step.
        vectors: output of a forward pass through it.
    """
    set_learning_rate(wrapped, 0.0)
    wrapped.backward(vectors.sum() * 0.0)
    wrapped.step()


def _set_partitioned(parameter: nn.Parameter, value: torch.Tensor, moment: str | None) -> None:
    """Set a master weight (moment None) or an Adam moment from its full value.

    At ZeRO stage 3 the accessor for full values fails when a tensor does not divide by the number of ranks,
    so this rank's padded part is cut here and set through the accessor for local values.
    """
    value = value.to(parameter.device)
    if hasattr(parameter, "ds_id"):
        local = safe_get_local_fp32_param(parameter)
        flat = F.pad(value.flatten(), (0, local.numel() * dist.get_world_size() - value.numel()))
        value = flat[dist.get_rank() * local.numel() :][: local.numel()].view_as(local)
        if moment is None:
            safe_set_local_fp32_param(parameter, value)
        else:
            safe_set_local_optimizer_state(parameter, value, moment)
    elif moment is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _own_or(parameter: nn.Parameter, full: torch.Tensor | None) -> torch.Tensor:
    return parameter.detach() if full is None else full.detach()


@contextlib.contextmanager
def moments_in_fp32(wrapped: Any) -> Iterator[None]:
    """Inside, moments of 8 bits lie in fp32 in main memory, where their accessors find and set them.

    They are packed again in the end. What was read is not quite what is packed from it (see `pack`), so that
    the run which wrote a checkpoint and one that resumes it go on from the same numbers.
    """
    adam = _adam(wrapped)
    if isinstance(adam, AdamW):
        yield
        return
    for state in adam.state.values():
        state |= dict(zip(ADAM_MOMENTS, unpacked(state), strict=True))
    _link_moments(wrapped)
    try:
        yield
    finally:
        for state in adam.state.values():
            pack(state, [state.pop(moment) for moment in ADAM_MOMENTS])
        _link_moments(wrapped)


def _link_moments(wrapped: Any) -> None:
    """Let the parameters know which moments there are; DeepSpeed does it once, after the first step."""
    if wrapped.zero_optimization_stage() in (1, 2):
        zero = wrapped.optimizer
        for low, high in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(low, high, _adam(wrapped).state)


def _adam(wrapped: Any) -> Any:
    return getattr(wrapped.optimizer, "optimizer", wrapped.optimizer)

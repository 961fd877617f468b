"""Low-rank adapters on the backbone: attach, and merge into the weights."""

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from rayembed.common.errors import ConfigError
from rayembed.model.configuration import LoraSettings


def attach_lora(
    backbone: "transformers.PreTrainedModel", settings: LoraSettings
) -> "transformers.PreTrainedModel":
    """Freeze the backbone and add trainable adapters to the named linear layers, or all, in place.

    Raises:
        ConfigError: a target module does not exist in the backbone.
    """
    from peft import LoraConfig, inject_adapter_in_model  # imports every model of transformers it adapts

    present = {
        name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)
    }
    targets = settings.target_modules or sorted(present)
    unknown = sorted(set(targets) - present)
    if unknown:
        raise ConfigError(
            f"LoRA target modules {unknown} are not linear layers here; there are {sorted(present)}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return backbone


@torch.no_grad()
def merge_lora(module: nn.Module) -> nn.Module:
    """Add every adapter to its layer's weights and put the plain layer back, in place.

    The sum is taken in fp32 whatever the type of the weights, so that a small update is not rounded away
    twice.
    """
    from peft.tuners.lora import LoraLayer

    for name, child in list(module.named_children()):
        if isinstance(child, LoraLayer):
            layer = child.get_base_layer()
            for adapter in child.active_adapters:
                down = child.lora_A[adapter].get_parameter("weight").float()
                update = child.lora_B[adapter].get_parameter("weight").float() @ down
                merged = layer.weight.float() + child.scaling[adapter] * update
                layer.weight = nn.Parameter(merged.to(layer.weight.dtype), requires_grad=False)
            setattr(module, name, layer)
        else:
            merge_lora(child)
    return module


def keep_zeros(backbone: "transformers.PreTrainedModel") -> None:
    """Let weights of linear layers that are zero stay zero in training: those of a pruned model; in place.

    A layer with adapters computes with W + s * B @ A where W is not zero, as `write_merged` will store it. A
    layer that is trained itself gets no gradient where W is zero, so AdamW moves nothing there.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in backbone.named_modules():
        if isinstance(module, LoraLayer):
            module.__dict__["forward"] = _masked_forward(module)
        elif isinstance(module, nn.Linear) and module.weight.requires_grad and "lora_" not in name:
            weight = module.weight
            weight.register_hook(lambda gradient, weight=weight: gradient.masked_fill(weight == 0, 0))


def _masked_forward(layer: Any) -> Any:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        base = layer.get_base_layer()
        weight = base.weight
        for adapter in layer.active_adapters:
            update = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
            weight = weight + (layer.scaling[adapter] * update).masked_fill(base.weight == 0, 0)
        return F.linear(inputs, weight, base.bias)

    return forward

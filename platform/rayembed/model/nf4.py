"""Linear layers whose frozen weights take 4 bits, by bitsandbytes: the base model of QLoRA.

A weight becomes one of the 16 values of NF4 times the largest absolute value of its block of 64, and these
scales are 8-bit numbers themselves (double quantisation). Source: https://arxiv.org/abs/2305.14314, 3.
"""

from typing import Any

import torch
import transformers
from torch import nn

from rayembed.common.errors import ResourceError

BITS_PER_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)
FORMAT = {"quant_type": "nf4", "compress_statistics": True, "blocksize": 64}


def use_nf4_weights(backbone: "transformers.PreTrainedModel") -> None:
    """Store the weights of all linear layers in NF4, on the device they are on; in place.

    Layers compute in the number format of their input; peft has adapters of its own for them.

    Raises:
        ResourceError: bitsandbytes is not installed.
    """
    bitsandbytes = _bitsandbytes()
    layers = {name: child for name, child in backbone.named_modules() if isinstance(child, nn.Linear)}
    for name, layer in layers.items():
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, quant_type="nf4", device="meta"
        )
        weight = layer.weight.data
        packed.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, **FORMAT).to(weight.device)
        packed.weight.module, packed.bias = packed, layer.bias
        backbone.set_submodule(name, packed)
        del layer.weight  # frees it before the next one is packed
    backbone.is_loaded_in_4bit = True  # type: ignore[assignment]


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a layer in NF4 computes with it, in its own number format.

    Raises:
        ResourceError: bitsandbytes is not installed.
    """
    functional = _bitsandbytes().functional
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, **FORMAT))


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ResourceError(
            "weights in nf4 need the package bitsandbytes; install rayembed[bitsandbytes] or set "
            "lora.quantization to null"
        ) from error
    return bitsandbytes

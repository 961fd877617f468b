"""AdamW whose two moments take a byte each, by bitsandbytes: its optimizer, and its states as fp32 tensors.

A moment is one of 256 values of a map times the largest absolute value of its block of 256; tensors below
4,096 elements stay in fp32. Source: https://arxiv.org/abs/2110.02861.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rayembed.common.errors import ResourceError

BYTES_PER_MOMENT = 1 + 4 / 256


def adamw_8bit() -> Any:
    """The optimizer's class.

    Raises:
        ResourceError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ResourceError(
            "training.optimizer adamw_8bit needs the package bitsandbytes; install rayembed[bitsandbytes] or "
            "set training.optimizer to adamw"
        ) from error
    return AdamW8bit


def unpacked(state: dict[str, Any]) -> list[torch.Tensor]:
    """Mean and mean square of the gradient from a parameter's state, fp32, in main memory."""
    from bitsandbytes.functional import dequantize_blockwise

    moments = []
    for number in (1, 2):
        stored = state[f"state{number}"]
        if stored.dtype is torch.uint8:
            stored = dequantize_blockwise(
                stored, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=256
            )
        moments.append(stored.to("cpu", torch.float32, copy=True))
    return moments


def pack(state: dict[str, Any], moments: Sequence[torch.Tensor]) -> None:
    """Put moments into a parameter's state, in place.

    Packing what was unpacked gives other numbers: the map has 1 but not -1, so a block whose largest value is
    negative has a smaller scale each time.
    """
    from bitsandbytes.functional import quantize_blockwise

    for number, moment in enumerate(moments, start=1):
        stored = state[f"state{number}"]
        if stored.dtype is torch.uint8:
            packed, scales = quantize_blockwise(
                moment.to(stored.device), code=state[f"qmap{number}"], blocksize=256
            )
            stored.copy_(packed)
            state[f"absmax{number}"].copy_(scales.absmax)
        else:
            stored.copy_(moment)

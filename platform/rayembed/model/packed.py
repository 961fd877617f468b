"""Weights in fewer bytes on the disk: without the zeros of pruned layers, in 16 bits, in 8 bits with scales.

Loading expands them, so a packed model takes as much memory and time as the one that it was packed from.

A row [0, 0.5, 0, 0, -1, 0, 0, 0.25] of a layer `q_proj` in int8 is stored as
    q_proj.weight.values   64 -127 32          kept numbers of all rows, one after the other
    q_proj.weight.scales   1 / 127             of each row, so that its largest number is 127
    q_proj.weight.kept     0b01001001          a bit for each weight
Without a share of zeros that pays for the bits, `values` has all numbers and `kept` is absent.

Shapes: O outputs, I inputs of a linear layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

PACKED_FILE = "packed.safetensors"
WeightFormat = Literal["stored", "bf16", "int8", "fp8_e4m3", "fp8_e5m2"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

_EIGHT_BITS = {"int8": torch.int8, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
_VALUES, _SCALES, _KEPT = ".values", ".scales", ".kept"


def pack(
    layers: nn.Module, weights: Mapping[str, torch.Tensor], form: WeightFormat
) -> dict[str, torch.Tensor]:
    """Pack the linear layers inside `layers`; other weights stay as they are.

    Args:
        layers: of the backbone.
        weights: of the whole backbone by name.
        form: number format of the linear layers; stored: as they are.
    """
    linear = {id(child.weight) for child in layers.modules() if isinstance(child, nn.Linear)}
    packed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        packed |= _packed(name, weight.detach().cpu(), form) if id(weight) in linear else {name: weight.cpu()}
    return packed


def _packed(name: str, weight_OI: torch.Tensor, form: WeightFormat) -> dict[str, torch.Tensor]:
    parts = {}
    values_OI = weight_OI
    if form == "bf16":
        values_OI = weight_OI.to(torch.bfloat16)
    elif form != "stored":
        values_OI, parts[name + _SCALES] = eight_bits(weight_OI, form)
    kept_OI = values_OI.float() != 0
    if values_OI.shape[1] % 8 == 0 and (~kept_OI).sum() * values_OI.itemsize * 8 > kept_OI.numel():
        parts[name + _KEPT] = torch.from_numpy(np.packbits(kept_OI.numpy(), axis=1))
        values_OI = _as_bytes(values_OI)[kept_OI].view(values_OI.dtype).flatten()
    return parts | {name + _VALUES: values_OI.contiguous()}


def eight_bits(weight_OI: torch.Tensor, form: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest 8-bit numbers, and the scale of each row that its largest number gives (O)."""
    dtype = _EIGHT_BITS[form]
    largest = 127.0 if form == "int8" else torch.finfo(dtype).max
    weight_OI = weight_OI.float()
    scales_O = weight_OI.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / largest
    scaled_OI = (weight_OI / scales_O[:, None]).clamp(-largest, largest)
    return (scaled_OI.round() if form == "int8" else scaled_OI).to(dtype), scales_O


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by name; 8-bit ones as fp32."""
    weights: dict[str, torch.Tensor] = {}
    for key, values in packed.items():
        if not key.endswith((_VALUES, _SCALES, _KEPT)):
            weights[key] = values
        elif key.endswith(_VALUES):
            name = key.removesuffix(_VALUES)
            kept, scales_O = packed.get(name + _KEPT), packed.get(name + _SCALES)
            if kept is not None:
                kept_OI = torch.from_numpy(np.unpackbits(kept.numpy(), axis=1)).bool()
                whole_OI = torch.zeros(kept_OI.shape, dtype=values.dtype)
                _as_bytes(whole_OI)[kept_OI] = _as_bytes(values)
                values = whole_OI
            weights[name] = values if scales_O is None else values.float() * scales_O[:, None]
    return weights


def _as_bytes(values: torch.Tensor) -> torch.Tensor:
    """The numbers as rows of bytes (..., bytes of one): fp8 cannot be picked by a mask."""
    return values.contiguous().unsqueeze(-1).view(torch.uint8)


def write_packed(folder: Path, backbone: nn.Module, layers: nn.Module, form: WeightFormat) -> None:
    """Write the weights of a backbone into its folder, which has its configuration."""
    named = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    weights = {name: named[name] for name in backbone.state_dict()}
    save_file(pack(layers, weights, form), folder / PACKED_FILE)


def read_packed(folder: Path) -> dict[str, torch.Tensor] | None:
    """Weights of a backbone's folder by name; None where they are not packed."""
    file = folder / PACKED_FILE
    return unpack(load_file(file)) if file.is_file() else None

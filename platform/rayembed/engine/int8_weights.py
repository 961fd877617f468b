"""Weights of the backbone as 8-bit integers, by torchao."""

from importlib.util import find_spec

import transformers

from rayembed.common.errors import ResourceError
from rayembed.model.backbone import layers_of


def check_torchao() -> None:
    """Raise ResourceError unless torchao is installed."""
    if find_spec("torchao") is None:
        raise ResourceError(
            "int8 weights need the package torchao; install rayembed[int8] or leave int8_weights off"
        )


def use_int8_weights(backbone: "transformers.PreTrainedModel") -> None:
    """Quantise the linear layers to int8 with one scale for each output channel; for inference, in place.

    Halves the memory of bf16 weights. Activations keep their format. What it costs in accuracy is measured in
    benchmarks/precision.py.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layers_of(backbone), Int8WeightOnlyConfig())

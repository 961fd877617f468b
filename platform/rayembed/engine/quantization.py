"""Weights of the backbone in 8 bits, by torchao."""

from importlib.util import find_spec

import transformers

from rayembed.common.errors import ResourceError
from rayembed.common.settings import Quantization
from rayembed.model.backbone import layers_of


def check_torchao(quantization: Quantization) -> None:
    """Raise ResourceError where the weights are to be in 8 bits and torchao is not installed."""
    if quantization != "none" and find_spec("torchao") is None:
        raise ResourceError(
            f"quantization {quantization} needs the package torchao; install rayembed[torchao] or take none"
        )


def quantize_weights(backbone: "transformers.PreTrainedModel", quantization: Quantization) -> None:
    """Hold the linear layers in 8 bits with one scale for each output channel; for inference, in place.

    Halves the memory of bf16 weights. Activations and products keep their format. What it costs in accuracy
    is measured in benchmarks/precision.py.
    """
    if quantization == "none":
        return
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    formats = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
    quantize_(layers_of(backbone), formats[quantization]())

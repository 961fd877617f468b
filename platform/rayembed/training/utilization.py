"""What share of the processor's measured speed the model's own arithmetic reaches."""

import time

import torch
from torch import nn
from transformers import PreTrainedModel

from rayembed.contract.packing import PackedBatch

_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed
_PRODUCTS = 5


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of the fastest of some large matrix products, after a first one."""
    side = _SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(_PRODUCTS + 1):
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


class Utilization:
    """Model FLOPs utilization as the PaLM paper defines it (appendix B): recomputation does not count.

    Counted are the products of the backbone's linear layers and of its attention, forward and backward, and
    gradients of weights where they are trained; pooling and losses are left out. Made and used on rank 0, of
    whose own batch and device it tells.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        """Args:
        model: with its trainable parameters marked, inside DeepSpeed or not.
        device: that computes; its peak is measured here.
        """
        backbone = model.get_submodule("backbone")
        assert isinstance(backbone, PreTrainedModel)
        self.peak = measured_peak(device, backbone.dtype)
        layers = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
        self._per_token = sum(2 * _size(layer) * (2 + layer.weight.requires_grad) for layer in layers)
        config = backbone.config
        width = config.num_attention_heads * config.head_dim
        # Two products of a text's tokens with one another forward, four backward.
        self._per_pair = 6 * 2 * width * config.num_hidden_layers

    def of(self, batch: PackedBatch, seconds: float) -> float:
        """Share of the peak in a step that took so long, from 0 to 1."""
        pairs = sum(length**2 for length in batch.lengths.texts)
        operations = self._per_token * batch.num_tokens + self._per_pair * pairs
        return operations / seconds / self.peak


def _size(layer: nn.Linear) -> int:
    return layer.in_features * layer.out_features  # ZeRO 3 leaves the weight itself empty


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

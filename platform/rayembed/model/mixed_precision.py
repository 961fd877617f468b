"""Inference in 16 bits that keeps what is sensitive to rounding in fp32.

The residual stream of a decoder holds a few values hundreds of times larger than the others. The first layers
write them and the last ones take them away again ("Massive Activations in Large Language Models", arXiv
2402.17762). In bf16 the small values beside them lose their digits at every addition. Here the residual
stream, the norms, the rotary products and the pooled states are fp32; weights, projections and attention stay
bf16, or fp16 as the published NV-Embed.

Shapes: T packed tokens, D hidden width.
"""

from typing import Any

import torch
from torch import nn

from rayembed.common.errors import ConfigError
from rayembed.model.backbone import ENCODERS
from rayembed.model.embedding_model import EmbeddingModel


class ResidualNorm(nn.Module):
    """RMS norm of the fp32 residual stream.

    Attributes:
        weight: scale of each channel (D), as in the norm it stands for.
        output_dtype: number format of what it returns.
    """

    def __init__(self, norm: Any, output_dtype: torch.dtype):
        super().__init__()
        is_gemma = not hasattr(norm, "variance_epsilon")  # it stores its scales less 1
        self.weight = nn.Parameter(1 + norm.weight.float(), requires_grad=False) if is_gemma else norm.weight
        self.epsilon = norm.eps if is_gemma else norm.variance_epsilon
        self.output_dtype = output_dtype

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis.

        The length of each state comes from one reduction without a squared copy of the stream, which is most
        of the time of a norm on a CPU.
        """
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(length.square() / states.shape[-1] + self.epsilon)
        return (states * scale).mul_(self.weight).to(self.output_dtype)


def use_mixed_precision(
    embedder: EmbeddingModel, *, dtype: torch.dtype = torch.bfloat16, fp32_layers: int = 0
) -> None:
    """Let an embedder compute in 16 bits around an fp32 residual stream; for inference, in place.

    Call it when the model is on its device.

    Args:
        embedder: model in any number format.
        dtype: what its weights become, bf16 or fp16.
        fp32_layers: first layers that stay in fp32 altogether. The large values come into being there, so
            this is where rounding does most harm.

    Raises:
        ConfigError: more fp32 layers than the model has.
    """
    backbone: Any = embedder.backbone
    if backbone.config.model_type in ENCODERS:
        if fp32_layers:
            raise ConfigError(
                f"fp32_layers is {fp32_layers}, and the model is an encoder, whose norms keep all values "
                "small; leave it out"
            )
        device = backbone.device.type
        _multiply_in(dtype, backbone, device)
        backbone.get_input_embeddings().to(dtype).register_forward_hook(_to_fp32)
        _multiply_in(dtype, embedder.pooling, device)
        return
    if not 0 <= fp32_layers <= len(backbone.layers):
        raise ConfigError(
            f"fp32_layers must be between 0 and the model's {len(backbone.layers)} layers, not {fp32_layers}"
        )
    backbone.embed_tokens.to(dtype).register_forward_hook(_to_fp32)
    for index, layer in enumerate(backbone.layers):
        layer_dtype = torch.float32 if index < fp32_layers else dtype
        layer.to(layer_dtype)
        for name in _norms_before_products(layer):
            setattr(layer, name, ResidualNorm(getattr(layer, name), layer_dtype))
        for name in _norms_before_sums(layer):
            setattr(layer, name, ResidualNorm(getattr(layer, name), torch.float32))
    backbone.norm = ResidualNorm(backbone.norm, torch.float32)
    _multiply_in(dtype, embedder.pooling, backbone.device.type)


def _norms_before_products(layer: Any) -> tuple[str, str]:
    is_gemma = hasattr(layer, "pre_feedforward_layernorm")
    return "input_layernorm", "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"


def _norms_before_sums(layer: Any) -> tuple[str, ...]:
    """Norms of what attention and feed-forward networks add, in Gemma."""
    is_gemma = hasattr(layer, "pre_feedforward_layernorm")
    return ("post_attention_layernorm", "post_feedforward_layernorm") if is_gemma else ()


def _multiply_in(dtype: torch.dtype, part: nn.Module, device: str) -> None:
    """Let linear layers compute in 16 bits; residual sums, norms and the mean stay fp32 by autocast."""
    for module in part.float().modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    part.forward = torch.autocast(device, dtype=dtype)(part.forward)


def _to_fp32(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.float()

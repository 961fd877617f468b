"""Miniature embedders for tests of training, and what a step asks of DeepSpeed without it."""

import torch

from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora
from rayembed.model.pooling import LatentPoolingConfig
from tests.tiny import make_backbone


def make_embedder(
    *, lora: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> EmbeddingModel:
    """Tiny Mistral with latent pooling; adapters that already say something where asked for."""
    torch.manual_seed(0)
    backbone = prepare_backbone(make_backbone(), "bidirectional")
    if lora:
        attach_lora(backbone, LoraSettings(rank=2, alpha=4, dropout=dropout))
    pooling = LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
    embedder = EmbeddingModel(backbone, ModelConfig(pooling=pooling))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return embedder.to(dtype)


class Unwrapped:
    """A bare module where one wrapped by DeepSpeed is expected."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.boundaries: list[bool] = []

    def __call__(self, *arguments):
        return self.module(*arguments)

    def backward(self, loss):
        loss.backward()

    def set_gradient_accumulation_boundary(self, boundary):
        self.boundaries.append(boundary)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of the trainable parameters by name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}

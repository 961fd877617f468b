"""Pooling heads: token states -> one vector a text. One head a file, one line here."""

from torch import nn

from rayembed.model.configuration import LatentPoolingConfig, MeanPoolingConfig, PoolingConfig
from rayembed.model.pooling.latent import LatentAttentionPooling
from rayembed.model.pooling.mean import MeanPooling

__all__ = ["LatentAttentionPooling", "MeanPooling", "build_pooling"]


def build_pooling(config: PoolingConfig, hidden_size: int) -> nn.Module:
    """Head for `config` over states of width `hidden_size`."""
    match config:
        case LatentPoolingConfig():
            return LatentAttentionPooling(config, hidden_size)
        case MeanPoolingConfig():
            return MeanPooling()

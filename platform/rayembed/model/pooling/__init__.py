"""Pooling heads: token states -> one vector a text. One head a file, one line here."""

from rayembed.model import configuration as settings
from rayembed.model.pooling.base import PoolingHead
from rayembed.model.pooling.eos import EosPooling
from rayembed.model.pooling.latent import LatentAttentionPooling
from rayembed.model.pooling.mean import MeanPooling
from rayembed.model.pooling.multi_layer import MultiLayerPooling
from rayembed.model.pooling.self_attention import SelfAttentionPooling
from rayembed.model.pooling.weighted_mean import WeightedMeanPooling

__all__ = ["PoolingHead", "build_pooling"]


def build_pooling(config: settings.PoolingConfig, hidden_size: int, num_layers: int) -> PoolingHead:
    """Head for `config` over a backbone of `num_layers` layers of width `hidden_size`."""
    match config:
        case settings.LatentPoolingConfig():
            return LatentAttentionPooling(config, hidden_size)
        case settings.SelfAttentionPoolingConfig():
            return SelfAttentionPooling(config, hidden_size)
        case settings.MultiLayerPoolingConfig():
            return MultiLayerPooling(config, hidden_size, num_layers)
        case settings.MeanPoolingConfig():
            return MeanPooling()
        case settings.WeightedMeanPoolingConfig():
            return WeightedMeanPooling()
        case settings.EosPoolingConfig():
            return EosPooling()

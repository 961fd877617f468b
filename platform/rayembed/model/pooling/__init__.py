"""Pooling heads: token states -> one vector a text. A head is one file and an entry in `PoolingConfig`."""

from typing import Annotated

from pydantic import Field

from rayembed.model.pooling.base import PoolingHead, PoolingSettings
from rayembed.model.pooling.cls import ClsPoolingConfig
from rayembed.model.pooling.eos import EosPoolingConfig
from rayembed.model.pooling.latent import LatentPoolingConfig
from rayembed.model.pooling.mean import MeanPoolingConfig
from rayembed.model.pooling.multi_layer import MultiLayerPoolingConfig
from rayembed.model.pooling.self_attention import SelfAttentionPoolingConfig
from rayembed.model.pooling.weighted_mean import WeightedMeanPoolingConfig

PoolingConfig = Annotated[
    LatentPoolingConfig
    | SelfAttentionPoolingConfig
    | MultiLayerPoolingConfig
    | MeanPoolingConfig
    | WeightedMeanPoolingConfig
    | EosPoolingConfig
    | ClsPoolingConfig,
    Field(discriminator="type"),
]

__all__ = [
    "ClsPoolingConfig",
    "EosPoolingConfig",
    "LatentPoolingConfig",
    "MeanPoolingConfig",
    "MultiLayerPoolingConfig",
    "PoolingConfig",
    "PoolingHead",
    "PoolingSettings",
    "SelfAttentionPoolingConfig",
    "WeightedMeanPoolingConfig",
]

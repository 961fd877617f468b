"""What an embedding model consists of besides its backbone's own configuration."""

from typing import Literal

from pydantic import Field

from rayembed.common.settings import Frozen
from rayembed.model.pooling import LatentPoolingConfig, PoolingConfig


class LoraSettings(Frozen):
    """Low-rank adapters on the backbone's linear layers."""

    rank: int = Field(16, ge=1, description="rank of the update of a layer")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input of the adapters")
    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the linear layers that get an adapter; None: all"
    )
    quantization: Literal["nf4"] | None = Field(
        None,
        description=(
            "number format of the frozen linear layers: nf4 takes 4 bits a weight (QLoRA; needs "
            "rayembed[bitsandbytes]); None: as training.precision"
        ),
    )


class ModelConfig(Frozen):
    """Attention direction and pooling head of an embedder."""

    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="whether a token sees the whole text or only what comes before it"
    )
    pooling: PoolingConfig = Field(
        LatentPoolingConfig(), description="pooling head; the keys depend on its type"
    )

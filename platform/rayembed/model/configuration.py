"""What an embedding model consists of besides its backbone's own configuration."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["auto", "bf16", "fp32"]
"""Number format of the weights; auto takes bf16 where the processor multiplies it natively."""


class Frozen(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LatentPoolingConfig(Frozen):
    """Latent-attention pooling. The defaults are NV-Embed's at width 4096, except that `head_width` follows
    the
    backbone: None means its hidden size, as published.
    """

    type: Literal["latent"] = "latent"
    num_latents: int = Field(512, ge=1, description="number of trainable latent vectors")
    num_heads: int = Field(8, ge=1, description="heads of the cross attention")
    head_width: int | None = Field(None, ge=1, description="width of one head; None: the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )
    init: Literal["residual", "published"] = Field(
        "residual",
        description="residual starts both output projections at zero, so that training starts from mean "
        "pooling; published leaves them at the framework's random values",
    )


class MeanPoolingConfig(Frozen):
    """Mean of the pooled tokens' states; no parameters."""

    type: Literal["mean"] = "mean"


PoolingConfig = Annotated[LatentPoolingConfig | MeanPoolingConfig, Field(discriminator="type")]


class LoraSettings(Frozen):
    """Low-rank adapters on the backbone's linear layers."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the linear layers that get an adapter",
    )


class ModelConfig(Frozen):
    """Attention direction and pooling head of an embedder."""

    attention: Literal["bidirectional", "causal"] = "bidirectional"
    pooling: PoolingConfig = LatentPoolingConfig()

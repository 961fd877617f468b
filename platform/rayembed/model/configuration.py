"""What an embedding model consists of besides its backbone's own configuration."""

from typing import Annotated, Literal

from pydantic import Field

from rayembed.common.settings import Frozen

Precision = Literal["auto", "bf16", "fp32"]
"""Number format of the weights; auto takes bf16 where the processor multiplies it natively."""


HeadWidth = Annotated[int | None, Field(ge=1)]
Init = Annotated[
    Literal["residual", "published"],
    Field(
        description="residual starts both output projections at zero, so that training starts from mean "
        "pooling; published leaves them at the framework's random values"
    ),
]


class LatentPoolingConfig(Frozen):
    """Latent-attention pooling. The defaults are NV-Embed's, whose heads are as wide as the backbone.

    The published block holds 9.4 % of NV-Embed's parameters. Its size grows with the square of the width
    and ignores the depth, so that a shallow backbone would get a head out of proportion: a quarter of the
    whole model at width 576 and 4 layers. `scaled` is the rule for backbones of another size than Mistral-7B.
    It keeps the head at 5 to 10 % of the whole model, and gives the published numbers for Mistral-7B.
    docs/models.md has the table.
    """

    type: Literal["latent"] = "latent"
    num_latents: int = Field(512, ge=1, description="number of trainable latent vectors")
    num_heads: int = Field(8, ge=1, description="heads of the cross attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )
    init: Init = "residual"

    @classmethod
    def scaled(cls, hidden_size: int, num_layers: int) -> "LatentPoolingConfig":
        """Sizes for a backbone: a latent for every 8 units of width, inner widths in proportion to its depth.

        A depth of 32 layers or more gets the published inner widths, 8 heads of the hidden size and a
        feed-forward of 4 times the hidden size; fewer layers get their share of both.
        """
        depth = min(num_layers / 32, 1)
        return cls(
            num_latents=max(hidden_size // 8, 16),
            num_heads=8,
            head_width=max(round(hidden_size * depth / 8), 1) * 8,
            feedforward_multiplier=max(round(4 * depth), 1),
        )


class SelfAttentionPoolingConfig(Frozen):
    """Attention among a text's own pooled tokens; sizes as in the latent block."""

    type: Literal["self_attention"] = "self_attention"
    num_heads: int = Field(8, ge=1, description="heads of the attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )
    init: Init = "residual"


class MultiLayerPoolingConfig(Frozen):
    """Latents that attend to one summary of every layer. The defaults are the source's at width 4096."""

    type: Literal["multi_layer"] = "multi_layer"
    num_latents: int = Field(768, ge=1, description="number of trainable latent vectors")
    num_heads: int = Field(32, ge=1, description="heads of the cross attention")
    head_width: HeadWidth = Field(None, description="width of one head; None: half of the hidden size")
    feedforward_multiplier: int = Field(
        4, ge=1, description="inner width of the feed-forward over the hidden size"
    )


class MeanPoolingConfig(Frozen):
    """Mean of the pooled tokens' states; no parameters."""

    type: Literal["mean"] = "mean"


class WeightedMeanPoolingConfig(Frozen):
    """Mean with weights that grow linearly along the text; no parameters. Meant for causal attention."""

    type: Literal["weighted_mean"] = "weighted_mean"


class EosPoolingConfig(Frozen):
    """State of the last pooled token, the end token; no parameters."""

    type: Literal["eos"] = "eos"


PoolingConfig = Annotated[
    LatentPoolingConfig
    | SelfAttentionPoolingConfig
    | MultiLayerPoolingConfig
    | MeanPoolingConfig
    | WeightedMeanPoolingConfig
    | EosPoolingConfig,
    Field(discriminator="type"),
]


class LoraSettings(Frozen):
    """Low-rank adapters on the backbone's linear layers."""

    rank: int = Field(16, ge=1, description="rank of the update of a layer")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input of the adapters")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the linear layers that get an adapter",
    )


class ModelConfig(Frozen):
    """Attention direction and pooling head of an embedder."""

    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="whether a token sees the whole text or only what comes before it"
    )
    pooling: PoolingConfig = Field(
        LatentPoolingConfig(), description="pooling head; the keys depend on its type"
    )

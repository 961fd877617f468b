"""What a stage minimises: one loss, or several that are added up."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen

Weight = Annotated[float, Field(gt=0, description="factor in the sum of the stage's losses")]
Temperature = Annotated[float, Field(gt=0, description="divisor of the cosine")]


class InfoNCEConfig(Frozen):
    """Contrastive loss: a query's positive against its negatives."""

    type: Literal["infonce"] = "infonce"
    weight: Weight = 1.0
    temperature: Temperature = 0.02
    document_to_query_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss in the direction document to query, for rows with in-batch negatives",
    )
    query_to_query: bool = Field(
        False, description="other queries are negatives as well, for rows with in-batch negatives"
    )
    document_to_document: bool = Field(
        False, description="the query's negatives are negatives of its positive as well"
    )
    false_negative_margin: float | None = Field(
        None,
        description="leave out negatives that score higher than the positive by more than this, in units of "
        "the cosine; None: leave none out",
    )
    hardness: float = Field(
        0.0, ge=0, description="a negative with cosine c weighs exp(hardness * c) times; 0: all alike"
    )

    @property
    def sees_other_queries(self) -> bool:
        """Whether vectors of other workers' queries are needed."""
        return bool(self.document_to_query_weight or self.query_to_query)


class ScoreDistillationConfig(Frozen):
    """Divergence from a teacher's scores, for rows that carry them."""

    type: Literal["score_distillation"] = "score_distillation"
    weight: Weight = 1.0
    temperature: Temperature = 0.02
    teacher_temperature: float = Field(1.0, gt=0, description="divisor of the teacher's scores")


class VectorDistillationConfig(Frozen):
    """Squared distance of queries and positives from a teacher's vectors."""

    type: Literal["vector_distillation"] = "vector_distillation"
    weight: Weight = 1.0
    teacher: str = Field(description="rayembed model folder of the same width, tokenizer and instructions")


class SimCSEConfig(Frozen):
    """A text against its own second encoding under another dropout mask."""

    type: Literal["simcse"] = "simcse"
    weight: Weight = 1.0
    temperature: Temperature = 0.05


class MNTPConfig(Frozen):
    """Prediction of masked tokens from the position before them."""

    type: Literal["mntp"] = "mntp"
    weight: Weight = 1.0
    masked_share: float = Field(0.2, gt=0, le=1, description="share of the tokens that are masked")
    mask_token: str = Field("_", description="text of the one token that stands for a masked one")


LossConfig = Annotated[
    InfoNCEConfig | ScoreDistillationConfig | VectorDistillationConfig | SimCSEConfig | MNTPConfig,
    Field(discriminator="type"),
]


class MatryoshkaConfig(Frozen):
    """The stage's losses are also taken on vectors cut to fewer dimensions."""

    dimensions: tuple[int, ...] = Field(
        min_length=1,
        description="where vectors are cut; name the full width to train it too",
    )
    weights: tuple[float, ...] | None = Field(
        None, description="of the loss at each of the dimensions; None: 1 each"
    )

    @model_validator(mode="after")
    def _check(self) -> "MatryoshkaConfig":
        if min(self.dimensions) < 1 or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(f"matryoshka.dimensions {list(self.dimensions)} must differ and be at least 1")
        if self.weights is not None and len(self.weights) != len(self.dimensions):
            raise ValueError(
                f"matryoshka has {len(self.weights)} weights for {len(self.dimensions)} dimensions; "
                "give one each or leave weights out"
            )
        return self

    @property
    def resolved_weights(self) -> tuple[float, ...]:
        """One weight for each of the dimensions."""
        return self.weights or (1.0,) * len(self.dimensions)

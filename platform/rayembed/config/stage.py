"""One stage of training."""

from typing import Literal

from pydantic import Field, model_validator

from rayembed.config.blend import SourceConfig
from rayembed.model.configuration import Frozen


class StageConfig(Frozen):
    """One contrastive training stage."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="lower-case letters, digits and hyphens")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="rows of a global batch, all workers together")
    learning_rate: float = Field(gt=0, description="highest rate, reached after warm-up")
    pooling_learning_rate: float | None = Field(
        None, gt=0, description="of the pooling head; None: learning_rate"
    )
    warmup_steps: int = Field(
        0, ge=0, description="linear warm-up, then linear decay to zero at the last step"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    gradient_clipping: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters")
    temperature: float = Field(0.02, gt=0, description="divisor of the cosine in the loss")
    document_to_query_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss in the direction document to query, for rows with in-batch negatives",
    )
    batching: Literal["blended", "homogeneous", "interleaved"] = Field(
        "blended",
        description="blended: each batch mixes the sources; homogeneous: one source a batch; interleaved: a "
        "batch is sub-batches of one source each",
    )
    sub_batch_size: int | None = Field(
        None, ge=1, description="rows of a sub-batch, a divisor of batch_size; for batching interleaved"
    )
    size_temperature: float = Field(
        1.0,
        gt=0,
        description="shares of sources without weight are rows ** (1 / size_temperature): 1 follows the "
        "sizes, a high value treats all alike",
    )
    blend: tuple[SourceConfig, ...] = Field(min_length=1, description="sources, each at most once")

    @model_validator(mode="after")
    def _check(self) -> "StageConfig":
        names = [entry.source for entry in self.blend]
        if len(set(names)) != len(names):
            raise ValueError(
                f"stage {self.name}: a source appears twice in the blend {names}; merge the entries"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"stage {self.name}: warmup_steps {self.warmup_steps} must be below steps {self.steps}"
            )
        for entry in self.blend:
            if not entry.in_batch_negatives and entry.negatives_per_query == 0:
                raise ValueError(
                    f"stage {self.name}, source {entry.source}: without in-batch negatives and with "
                    "negatives_per_query 0 a row has nothing to learn from; set one of them"
                )
        self._check_batching()
        self._check_weights()
        return self

    def _check_batching(self) -> None:
        if (self.batching == "interleaved") != (self.sub_batch_size is not None):
            raise ValueError(
                f"stage {self.name}: batching is {self.batching} and sub_batch_size {self.sub_batch_size}; "
                "interleaved batches need it and no others have it"
            )
        if self.sub_batch_size and (
            self.batch_size % self.sub_batch_size or self.sub_batch_size == self.batch_size
        ):
            raise ValueError(
                f"stage {self.name}: sub_batch_size {self.sub_batch_size} must divide batch_size "
                f"{self.batch_size} into two parts or more; choose another, or batching homogeneous"
            )

    def _check_weights(self) -> None:
        weighted = [entry.source for entry in self.blend if entry.weight is not None]
        unweighted = [entry.source for entry in self.blend if entry.weight is None]
        if weighted and unweighted:
            raise ValueError(
                f"stage {self.name}: sources {', '.join(weighted)} have a weight and {', '.join(unweighted)} "
                "have none; give all of them one, or none for shares by size"
            )
        if weighted and self.size_temperature != 1:
            raise ValueError(
                f"stage {self.name}: size_temperature {self.size_temperature:g} has no effect on weights; "
                "remove it or the weights"
            )

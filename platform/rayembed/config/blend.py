"""One source of a stage's blend and how its hard negatives are mined."""

from typing import Literal

from pydantic import Field

from rayembed.model.configuration import Frozen


class MiningConfig(Frozen):
    """How hard negatives are found for a source that brings none."""

    method: Literal["bm25"] = Field("bm25", description="how candidates are searched")
    top_k: int = Field(30, ge=1, description="candidates looked at for each query")
    positive_share: float = Field(
        0.95, gt=0, le=1, description="a candidate must score below this share of the positive's score"
    )


class SourceConfig(Frozen):
    """One source of a stage's blend."""

    source: str = Field(description="name of a built-in source, or of one declared under data.sources")
    weight: float = Field(gt=0, description="share of the rows of a batch, relative to the other sources")
    instruction: str | None = Field(None, description="task instruction in front of the query")
    symmetric: bool = Field(False, description="put the instruction in front of the documents as well")
    in_batch_negatives: bool = Field(
        description="whether other rows' documents are negatives for this source's rows"
    )
    negatives_per_query: int = Field(1, ge=0, description="hard negatives a row brings")
    labels: Literal["example", "label"] = Field(
        "example", description="for labelled sources: documents are examples of a class, or the label texts"
    )
    mining: MiningConfig | None = Field(None, description="mine hard negatives; None: the source's own")

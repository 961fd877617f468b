"""One source of a stage's blend and how its hard negatives are mined."""

from typing import Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen


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
    weight: float | None = Field(
        None,
        gt=0,
        description="share of the rows of a batch, relative to the other sources; None, for all of them "
        "together: by number of rows, see size_temperature of the stage",
    )
    cap: int | None = Field(
        None, ge=1, description="most different rows that are used, chosen by the seed; None: all"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="most passes over the rows, after which the other sources take its place; None: as many "
        "as the steps need",
    )
    instruction: str | None = Field(None, description="task instruction in front of the query")
    paraphrases: tuple[str, ...] = Field(
        (), description="other wordings of the instruction; each row gets one of all wordings by chance"
    )
    symmetric: bool = Field(False, description="put the instruction in front of the documents as well")
    in_batch_negatives: bool = Field(
        description="whether other rows' documents are negatives for this source's rows"
    )
    negatives_per_query: int = Field(1, ge=0, description="hard negatives a row brings")
    labels: Literal["example", "label", "auto"] = Field(
        "example",
        description="for labelled sources: documents are examples of a class, or the label texts; auto: "
        "label texts for two classes, examples for more",
    )
    mining: MiningConfig | None = Field(None, description="mine hard negatives; None: the source's own")

    @property
    def wordings(self) -> tuple[str, ...]:
        """The instruction and its paraphrases; empty without an instruction."""
        return (self.instruction, *self.paraphrases) if self.instruction else ()

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if self.mining and self.negatives_per_query == 0:
            raise ValueError(
                f"source {self.source}: mining looks for negatives and negatives_per_query is 0; raise it or "
                "remove mining"
            )
        if self.paraphrases and not self.instruction:
            raise ValueError(
                f"source {self.source}: paraphrases need the instruction that they reword; set instruction, "
                "which evaluation and serving use, or remove paraphrases"
            )
        if len(set(self.wordings)) != len(self.wordings):
            raise ValueError(
                f"source {self.source}: a wording appears twice among instruction and paraphrases; remove one"
            )
        if self.symmetric and not self.instruction:
            raise ValueError(
                f"source {self.source}: symmetric puts the instruction in front of the documents and there "
                "is none; set instruction or remove symmetric"
            )
        return self

"""One source of a stage's blend and how its hard negatives are mined."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen, refuse


class MiningConfig(Frozen):
    """How hard negatives are found for a source that brings none."""

    method: Literal["bm25"] = Field("bm25", description="how candidates are searched")
    top_k: int = Field(30, ge=1, description="candidates per query")
    positive_share: float = Field(
        0.95, gt=0, le=1, description="reject candidates with this share of the positive's score or more"
    )


class SourceConfig(Frozen):
    """One source of a stage's blend."""

    source: str = Field(description="a built-in source or one of data.sources")
    weight: float | None = Field(
        None,
        gt=0,
        description=(
            "share of the rows, relative to the other sources. None for all sources: by size, see"
            " `size_temperature`"
        ),
    )
    cap: int | None = Field(
        None, ge=1, description="use at most this many different rows, chosen by the seed; None: all"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description=(
            "use the rows at most this many times, then the other sources take their place; None:"
            " as often as needed"
        ),
    )
    instruction: str | None = Field(
        None, description="sentence in front of the query that says what it is for"
    )
    paraphrases: tuple[str, ...] = Field(
        (), description="other wordings of the instruction; each row gets a random one"
    )
    symmetric: bool = Field(False, description="documents carry the instruction too")
    in_batch_negatives: bool = Field(description="documents of other rows are negatives")
    negatives_per_query: int = Field(1, ge=0, description="hard negatives per row")
    labels: Literal["example", "label", "auto"] = Field(
        "example",
        description=(
            "for labelled sources: documents are other texts of the class (example) or its name "
            "(label). auto: names for two classes, else examples"
        ),
    )
    query_max_length: int | None = Field(
        None, ge=4, description="most tokens of a query in training; None: `contract.max_length`"
    )
    document_max_length: int | None = Field(
        None, ge=4, description="most tokens of a document in training; None: `contract.max_length`"
    )
    mining: MiningConfig | None = Field(None, description="mine hard negatives; None: use those in the data")

    @property
    def wordings(self) -> tuple[str, ...]:
        """The instruction and its paraphrases; empty without an instruction."""
        return (self.instruction, *self.paraphrases) if self.instruction else ()

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.mining and self.negatives_per_query == 0:
            yield (
                f"source {self.source}: mining looks for negatives and negatives_per_query is 0; raise it or "
                "remove mining"
            )
        if self.paraphrases and not self.instruction:
            yield (
                f"source {self.source}: paraphrases need the instruction that they reword; set instruction, "
                "which evaluation and serving use, or remove paraphrases"
            )
        if len(set(self.wordings)) != len(self.wordings):
            yield (
                f"source {self.source}: a wording appears twice among instruction and paraphrases; remove one"
            )
        if self.symmetric and not self.instruction:
            yield (
                f"source {self.source}: symmetric puts the instruction in front of the documents and there "
                "is none; set instruction or remove symmetric"
            )

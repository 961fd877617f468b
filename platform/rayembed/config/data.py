"""Where the data is, how it is read and what is refused."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rayembed.common.settings import Frozen, refuse

SourceKind = Literal["pairs", "labels", "scores", "nli", "duplicates"]
SourceFormat = Literal[
    "auto", "parquet", "json-lines", "csv", "text", "beir", "hugging-face", "mteb", "triples"
]  # fmt: skip


class UserSourceConfig(Frozen):
    """A source of the user's own."""

    path: str | None = Field(
        None,
        description="file, folder, or pattern such as texts/*.jsonl, or URI of it (s3://, gs://, abfss://, "
        "hf://, file://); a task name for mteb",
    )
    hub: str | None = Field(
        None,
        description="in place of path: data set OWNER/NAME of the Hugging Face hub, from its local cache or "
        "else streamed",
    )
    revision: str | None = Field(None, description="of hub: branch, tag or commit; None: main")
    config: str | None = Field(
        None, description="configuration of a hub data set, or all; None: the only one there is"
    )
    split: str | None = Field(None, description="which split is read, or all; None: the only one there is")
    format: SourceFormat = Field("auto", description="auto: by the names of the files")
    kind: SourceKind = Field("pairs", description="layout of the rows, see data.md")
    task_type: Literal["retrieval", "classification", "clustering", "sts", "bitext"] = Field(
        "retrieval", description="recorded with every row"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="column of the layout -> column of the files, where they differ; a.b is field b of a",
    )
    corpus: str | None = Field(None, description="of triples: file of document ids and texts")
    queries: str | None = Field(None, description="of triples: file of query ids and texts")
    label_texts: dict[str, str] = Field(
        default_factory=dict,
        description="label -> text that stands for it in label-based rows; of nli and duplicates: label -> "
        "the label that it means",
    )
    least_score: float | None = Field(
        None,
        description="of scores: sentences with this score or more are each other's positive; None: 4, where "
        "no score is above 5",
    )
    licence: str = Field("unknown", description="recorded in the data card")
    derived_from: str | None = Field(
        None,
        description="source whose rows these were made from, by mining for example; the contamination guard "
        "and the model's licences count it too",
    )
    largest_bad_share: float = Field(
        0.01, ge=0, le=1, description="of all rows; more bad rows than that are an error"
    )

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        if self.path:
            return self.path
        return f"hub data set {self.hub}" + (f" at {self.revision}" if self.revision else "")

    @field_validator("label_texts", mode="before")
    @classmethod
    def _label_names(cls, value: Any) -> Any:
        """Labels that YAML reads as numbers or booleans, as rows have them."""
        if not isinstance(value, dict):
            return value
        return {
            str(int(label) if isinstance(label, float) and label.is_integer() else label): text
            for label, text in value.items()
        }

    @model_validator(mode="after")
    def _check(self) -> "UserSourceConfig":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if bool(self.path) == bool(self.hub):
            yield "give either path or hub"
        if self.revision and not self.hub:
            yield "revision is of a hub data set; give hub, or remove it"


class ContaminationConfig(Frozen):
    """Training rows that are near-duplicates of rows of an evaluation are dropped."""

    against: tuple[str, ...] | None = Field(
        None,
        description="built-in sources whose test split is compared, sources of yours whose rows all are, and "
        "mteb:NAME for the test rows of a task or benchmark of mteb; None: the built-in ones of the blend; "
        "empty: nothing is compared",
    )
    mirror: str | None = Field(
        None,
        description="of mteb: folder that `rayembed mirror make` filled; None: tasks come from the hub",
    )
    documents: bool = Field(
        False, description="compare positives with the documents of the test split too, not only the queries"
    )


class DataConfig(Frozen):
    """Where the data is."""

    directory: str = Field("data", description="built sources, relative to the workspace")
    sources: dict[str, UserSourceConfig] = Field(
        default_factory=dict, description="name -> source of the user's own"
    )
    contamination: ContaminationConfig = Field(
        ContaminationConfig(), description="guard against training on rows of an evaluation"
    )

    @field_validator("sources")
    @classmethod
    def _names_are_folders(cls, sources: dict[str, UserSourceConfig]) -> dict[str, UserSourceConfig]:
        for name in sources:
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
                raise ValueError(
                    f"source name {name!r} is a folder name too; use lower-case letters, digits and -._"
                )
        return sources

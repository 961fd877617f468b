"""Where the data is, how it is read and what is refused."""

import re
from typing import Literal

from pydantic import Field, field_validator

from rayembed.common.settings import Frozen

SourceKind = Literal["pairs", "labels", "scores", "nli", "duplicates"]
SourceFormat = Literal["auto", "parquet", "json-lines", "csv", "beir", "hugging-face", "mteb", "triples"]


class UserSourceConfig(Frozen):
    """A source of the user's own."""

    path: str = Field(
        description="file, folder, or URI of either (s3://, gs://, abfss://, file://); a task name for mteb"
    )
    format: SourceFormat = Field("auto", description="auto: by the names of the files")
    kind: SourceKind = Field("pairs", description="layout of the rows, see data.md")
    task_type: Literal["retrieval", "classification", "clustering", "sts", "bitext"] = Field(
        "retrieval", description="recorded with every row"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="column of the layout -> column of the files, where they differ"
    )
    split: str = Field("train", description="which split of a BEIR, Hugging Face or mteb source is read")
    corpus: str | None = Field(None, description="of triples: file of document ids and texts")
    queries: str | None = Field(None, description="of triples: file of query ids and texts")
    label_texts: dict[str, str] = Field(
        default_factory=dict, description="label -> text that stands for it in label-based rows"
    )
    least_score: float = Field(
        4.0, description="of scores: sentences with this score or more are each other's positive"
    )
    licence: str = Field("unknown", description="recorded in the data card")
    largest_bad_share: float = Field(
        0.01, ge=0, le=1, description="of all rows; more bad rows than that are an error"
    )


class ContaminationConfig(Frozen):
    """Training rows that are near-duplicates of rows of an evaluation are dropped."""

    against: tuple[str, ...] | None = Field(
        None,
        description="built-in sources whose test split is compared, and sources of yours whose rows all are; "
        "None: the built-in ones of the blend; empty: nothing is compared",
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

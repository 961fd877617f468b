"""Where the data is."""

from typing import Literal

from pydantic import Field

from rayembed.model.configuration import Frozen


class UserSourceConfig(Frozen):
    """A source of the user's own."""

    path: str = Field(description="Parquet or JSON-lines file, or a folder of them")
    kind: Literal["pairs", "labels"] = Field("pairs", description="layout of the rows, see data.md")
    task_type: Literal["retrieval", "classification", "clustering", "sts"] = Field(
        "retrieval", description="recorded with every row"
    )


class DataConfig(Frozen):
    """Where the data is."""

    directory: str = Field("data", description="built sources, relative to the workspace")
    sources: dict[str, UserSourceConfig] = Field(
        default_factory=dict, description="name -> source of the user's own"
    )

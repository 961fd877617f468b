"""Arguments and options that several verbs share, and how a verb is called from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # what a caller in Python may give
    FilePath = str | Path
    Recipe = str | Path | Mapping[str, Any]
    Names = str | Sequence[str]
else:  # what typer parses, which knows no unions
    FilePath = Recipe = Path
    Names = str

Set = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Override a setting, such as seed=2; may be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]


def names_of(listed: Names) -> list[str]:
    """Names in a list, or in one text that separates them by commas."""
    names = listed.split(",") if isinstance(listed, str) else listed
    return [name.strip() for name in names if name.strip()]

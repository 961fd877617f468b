"""Names that requests choose from."""

from typing import Literal

Side = Literal["query", "document"]
BadRows = Literal["error", "skip", "null-vector"]

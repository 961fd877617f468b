"""Names that requests choose from."""

from typing import Literal

Side = Literal["query", "document"]
VectorFormat = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
BadRows = Literal["error", "skip", "null-vector"]

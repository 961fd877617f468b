"""Shards of a job's output: Parquet files that describe themselves.

A shard holds the number of each row, the kept columns and `vector`, a list of fixed size. What it is made of
is in the metadata of the file, so a shard is finished exactly when its file is there.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.paths import atomic_write
from rayembed.engine.bulk.inputs import open_parquet

VECTOR_COLUMN = "vector"
VECTORS_FOLDER = "vectors"
_METADATA_KEY = b"rayembed"


@dataclass
class Statistics:
    """What a shard, or all shards, are made of.

    Attributes:
        rows: rows of the input.
        vectors: rows that have a vector.
        tokens: tokens of those, instruction and end token included; a repeated text counts each time.
        truncated: texts that were cut to the longest length.
        bad_rows: reason -> rows without a usable text.
    """

    rows: int = 0
    vectors: int = 0
    tokens: int = 0
    truncated: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Statistics") -> None:
        """Add those of another shard."""
        self.rows += other.rows
        self.vectors += other.vectors
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.bad_rows = dict(Counter(self.bad_rows) + Counter(other.bad_rows))


def shard_path(output: Path, shard: int) -> Path:
    """File of a shard; the order of the names is the order of the rows."""
    return output / VECTORS_FOLDER / f"part-{shard:06d}.parquet"


def vector_column(vectors: np.ndarray, rows: int, missing: list[int]) -> pa.FixedSizeListArray:
    """Arrow column of `rows` rows: the `vectors` (N, D) in order, null at the positions `missing`."""
    present = np.ones(rows, dtype=bool)
    present[missing] = False
    values = np.zeros((rows, vectors.shape[1]), dtype=vectors.dtype)
    values[present] = vectors
    mask = pa.array(~present) if missing else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), vectors.shape[1], mask=mask)


def write_shard(
    path: Path, columns: pa.Table, vectors: pa.FixedSizeListArray, statistics: Statistics
) -> None:
    """Write a shard under a temporary name and rename it."""
    table = columns.append_column(VECTOR_COLUMN, vectors)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(statistics))})
    buffer = BytesIO()
    pq.write_table(
        table,
        buffer,
        compression={name: "none" if name == VECTOR_COLUMN else "zstd" for name in table.column_names},
        use_dictionary=columns.column_names,  # vectors hardly compress and never repeat
        write_statistics=columns.column_names,
    )
    atomic_write(path, buffer.getvalue())


def read_statistics(path: Path) -> Statistics:
    """What a finished shard is made of."""
    with open_parquet(path) as parquet:
        return Statistics(**json.loads(parquet.schema_arrow.metadata[_METADATA_KEY]))

"""Shards of a job's output: Parquet files that describe themselves.

A shard holds the number of each row, the kept columns and `vector`, a list of fixed size. What it is made of
is in the metadata of the file, so a shard is finished exactly when its file is there.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, fetch, here, is_stored, location_of
from rayembed.common.settings import differences
from rayembed.records.columnar import open_parquet
from rayembed.records.locations import list_files

VECTOR_COLUMN = "vector"
VECTORS_FOLDER = "vectors"
_METADATA_KEY = b"rayembed"


@dataclass
class ShardStatistics:
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

    def add(self, other: "ShardStatistics") -> None:
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
    path: Path, columns: pa.Table, vectors: pa.FixedSizeListArray, statistics: ShardStatistics
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
    if is_stored(path):
        here(path).unlink()  # no node reads it again


def files_in(folder: Path) -> set[str]:
    """Names of the files in a folder, or of the file itself; none where there is neither."""
    try:
        return {file.name for file in list_files(location_of(folder))}
    except DataError:
        return set()


def read_statistics(path: Path) -> ShardStatistics:
    """What a finished shard is made of."""
    with open_parquet(path) as parquet:
        return ShardStatistics(**json.loads(parquet.schema_arrow.metadata[_METADATA_KEY]))


MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_MOST_NAMED = 5

Status = Literal["running", "incomplete", "complete"]


def read_manifest(output: Path) -> dict[str, Any] | None:
    """Manifest of an earlier run; None where there is no output yet.

    Raises:
        DataError: the folder holds something else, or was written by another release.
    """
    path = fetch(output / MANIFEST_FILE)
    if not path.is_file():
        if files_in(output):
            raise DataError(f"{output} holds other files; choose a new folder for the vectors")
        return None
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"], *map(manifest.__getitem__, ("settings", "input", "status"))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not the manifest of vectors ({error!r}); choose a new folder") from error
    if version[0] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version[0]}, this release reads {FORMAT_VERSION}; "
            "choose a new folder"
        )
    return manifest


def write_manifest(output: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a job."""
    atomic_write(
        output / MANIFEST_FILE, json.dumps({"format_version": FORMAT_VERSION} | manifest, indent=2) + "\n"
    )


def check_same(output: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Make sure that the shards of `earlier` and those of `now` belong together.

    Raises:
        DataError: they do not; names every setting and file that differs.
    """
    changes = [*differences(earlier["settings"], now["settings"])]
    before, after = ({file["path"]: file["sha256"] for file in side["input"]} for side in (earlier, now))
    changes += differences(before, after)
    if changes:
        more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
        raise DataError(
            f"{output} holds vectors of another request: {'; '.join(changes[:_MOST_NAMED])}{more}. "
            "Repeat the earlier request to continue it, choose another output, or overwrite this one"
        )

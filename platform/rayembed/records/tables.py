"""Tables that are read whole, such as the files of a task that a user declares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from rayembed.common.errors import DataError


def read_columns(
    path: Path, needed: tuple[str, ...], names: Mapping[str, str], optional: tuple[str, ...] = ()
) -> dict[str, list[Any]]:
    """Columns of a small Parquet, JSON lines or tab-separated file, read whole, under the names in `needed`.

    Args:
        path: the file; its suffix tells the format.
        needed: columns that have to be there.
        names: name in `needed` or `optional` -> name in the file, where they differ.
        optional: columns that are read where they are there.

    Raises:
        DataError: the file is missing, damaged or empty, or lacks a column.
    """
    table = _table(path)
    missing = [names.get(name, name) for name in needed if names.get(name, name) not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {missing}; it has {table.column_names}. Name yours under `columns:`"
        )
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    present = [name for name in optional if names.get(name, name) in table.column_names]
    return {name: table[names.get(name, name)].to_pylist() for name in (*needed, *present)}


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix in (".jsonl", ".json"):
            return pyarrow.json.read_json(path)
        if path.suffix == ".tsv":
            return pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(delimiter="\t"))
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(f"{path} is neither .parquet, .jsonl nor .tsv")

"""Tables whose files also hold rows that were deleted: Delta, Iceberg and Lance.

The library of each format knows which rows there are. A part is what it hands out as one: a file of a Delta
table, a fragment of a Lance one, and all of an Iceberg one. Settings of a store come from the environment.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import location_of
from rayembed.common.stores import first_line
from rayembed.config.data import UserSourceConfig
from rayembed.records.base import Part, Reader, Row
from rayembed.records.columnar import rows_of
from rayembed.records.layout import table_format
from rayembed.records.locations import StoredFile


@dataclass(frozen=True)
class _Library:
    """What a package makes of a table.

    Attributes:
        package: its name on the package index.
        pieces: location, names of its files -> state of the table and the names of its pieces in order.
        batches: location, state, piece -> schema and batches.
    """

    package: str
    pieces: Callable[[str, Sequence[str]], tuple[str, list[str]]]
    batches: Callable[[str, str, str], tuple[pa.Schema, Iterable[pa.RecordBatch]]]


def _delta(location: str, version: str | None = None) -> Any:
    return import_module("deltalake").DeltaTable(location, version=int(version) if version else None)


def _delta_pieces(location: str, names: Sequence[str]) -> tuple[str, list[str]]:
    table = _delta(location)
    fragments = table.to_pyarrow_dataset().get_fragments()
    return str(table.version()), sorted(fragment.path for fragment in fragments)


def _delta_batches(location: str, version: str, piece: str) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    dataset = _delta(location, version).to_pyarrow_dataset()
    fragment = next(fragment for fragment in dataset.get_fragments() if fragment.path == piece)
    return dataset.schema, fragment.to_batches(schema=dataset.schema)


def _lance_pieces(location: str, names: Sequence[str]) -> tuple[str, list[str]]:
    dataset = import_module("lance").dataset(location)
    return str(dataset.version), [str(fragment.fragment_id) for fragment in dataset.get_fragments()]


def _lance_batches(location: str, version: str, piece: str) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    dataset = import_module("lance").dataset(location, version=int(version))
    return dataset.schema, dataset.get_fragment(int(piece)).to_batches()


def _iceberg_pieces(location: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """The newest metadata, `v3.metadata.json` or `00003-....metadata.json`."""
    metadata = [name for name in names if re.fullmatch(r"metadata/v?\d+[^/]*\.metadata\.json", name)]
    return max(metadata, key=lambda name: int(re.findall(r"\d+", name)[0])), [""]


def _iceberg_batches(location: str, metadata: str, piece: str) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    tables = import_module("pyiceberg.table")
    reader = tables.StaticTable.from_metadata(f"{location}/{metadata}").scan().to_arrow_batch_reader()
    return reader.schema, reader


_LIBRARIES = {
    "delta": _Library("deltalake", _delta_pieces, _delta_batches),
    "iceberg": _Library("pyiceberg", _iceberg_pieces, _iceberg_batches),
    "lance": _Library("pylance", _lance_pieces, _lance_batches),
}


def _parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """The pieces of the table as it is now.

    Raises:
        DataError: a split or a configuration is chosen, or the table cannot be read.
        ResourceError: the package for it is not installed.
    """
    name = table_format(files)
    assert name is not None, "find_parts has looked"
    if source.split or source.config:
        raise DataError(f"{source.origin} is one table without splits; remove split and config")
    location = location_of(source.path or files[0].uri.removesuffix(files[0].name)).rstrip("/")
    state, pieces = _told(name, location, _LIBRARIES[name].pieces, [file.name for file in files])
    file = StoredFile(location, location.rpartition("/")[2], 0, 0)
    return [Part("table", file, extra={"of": name, "state": state, "piece": piece}) for piece in pieces]


def _read(part: Part) -> Iterator[Row]:
    """Rows of a piece."""
    name, *which = (part.extra[key] for key in ("of", "state", "piece"))
    schema, batches = _told(name, part.file.uri, _LIBRARIES[name].batches, *which)
    yield from rows_of(schema, batches)


def _told(name: str, location: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """What the library of a format says; its errors are of many kinds."""
    try:
        return ask(location, *arguments)
    except ImportError as error:
        raise ResourceError(
            f"{location} is a table of {name.title()} and needs {_LIBRARIES[name].package} ({error}); "
            f"run `pip install 'rayembed[{name}]'`, or write its rows as Parquet"
        ) from error
    except Exception as error:
        raise DataError(
            f"{location} cannot be read as a table of {name.title()} ({first_line(error)}); write its rows "
            "as Parquet"
        ) from error


READER = Reader("table", (), _parts, _read)

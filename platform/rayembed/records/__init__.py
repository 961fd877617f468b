"""Registry of the readers. A new one is a module here and a line in `_ALL`."""

from collections.abc import Iterator
from pathlib import Path

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records import beir, csv_pairs, hugging_face, json_lines, mteb_tasks, parquet, triples
from rayembed.records.base import Part, Reader, Row, Unreadable, with_suffix
from rayembed.records.locations import StoredFile, list_files

_ALL = (
    parquet.READER,
    json_lines.READER,
    csv_pairs.READER,
    beir.READER,
    hugging_face.READER,
    mteb_tasks.READER,
    triples.READER,
)

READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}

__all__ = ["READERS", "Part", "Reader", "Row", "Unreadable", "find_files", "find_parts", "read_part"]


def find_files(source: UserSourceConfig) -> list[StoredFile]:
    """Files of a source, with what tells one state of them from another.

    Raises:
        DataError: nothing is there.
        ResourceError: the store does not answer.
    """
    if source.format == "mteb":
        return [StoredFile(source.path, source.path, 0, 0)]
    extra = [uri for uri in (source.corpus, source.queries) if uri]
    return [file for uri in (source.path, *extra) for file in list_files(uri)]


def find_parts(source: UserSourceConfig, work: Path) -> list[Part]:
    """Cut a source into parts, in a fixed order.

    `auto` takes the layout that a folder is recognised as, else every file by its suffix.

    Args:
        source: what the user declared.
        work: folder for what all parts need, such as an index of texts.

    Raises:
        DataError: nothing is there, or nothing that a reader takes.
        ResourceError: the store does not answer.
    """
    if source.format == "mteb":
        return READERS["mteb"].parts(source, find_files(source), work)
    files = list_files(source.path)
    if source.format != "auto":
        chosen = READERS[source.format]
        taken = with_suffix(files, chosen.suffixes) if len(files) > 1 and chosen.suffixes else files
        return _checked(chosen.parts(source, taken, work), source)
    for reader in READERS.values():
        if reader.recognises(files):
            return _checked(reader.parts(source, files, work), source)
    by_suffix = [
        (reader, file)
        for file in files
        for reader in READERS.values()
        if with_suffix([file], reader.suffixes)
    ]
    parts = [part for reader, file in by_suffix for part in reader.parts(source, [file], work)]
    return _checked(parts, source)


def read_part(part: Part) -> Iterator[Row]:
    """Rows of a part in order."""
    return READERS[part.format].read(part)


def _checked(parts: list[Part], source: UserSourceConfig) -> list[Part]:
    if not parts:
        suffixes = ", ".join(suffix for reader in READERS.values() for suffix in reader.suffixes)
        raise DataError(
            f"{source.path} has nothing to read as format {source.format}; files end in {suffixes}"
        )
    return parts

"""Registry of the readers. A new one is a line in `_ALL`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records import columnar, judged, mteb_tasks, tables, text_files
from rayembed.records.base import Part, Reader, Row, Unreadable
from rayembed.records.layout import choose_files, is_bookkeeping, table_format
from rayembed.records.locations import StoredFile, hub_location, list_files

_ALL = (
    columnar.PARQUET,
    text_files.JSON,
    text_files.CSV,
    columnar.ARROW,
    judged.BEIR,
    judged.TRIPLES,
    mteb_tasks.READER,
    tables.READER,
    text_files.TEXT,
)

READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}
SUFFIXES = tuple(suffix for reader in _ALL for suffix in reader.suffixes if reader is not text_files.TEXT)
"""Of files that are data wherever they lie; plain text may be a note or a licence."""

__all__ = [
    "READERS", "Part", "Reader", "Row", "Unreadable", "find_files", "find_parts", "read_part", "unread_files"
]  # fmt: skip


def find_files(source: UserSourceConfig) -> list[StoredFile]:
    """Files of a source, with what tells one state of them from another.

    Raises:
        DataError: nothing is there.
        ResourceError: the store does not answer.
    """
    if source.format == "mteb":
        return [StoredFile(source.origin, source.origin, 0, 0)]
    extra = [uri for uri in (source.corpus, source.queries) if uri]
    return [file for uri in (_location(source), *extra) for file in list_files(uri)]


def find_parts(source: UserSourceConfig, work: Path) -> list[Part]:
    """Cut a source into parts, in a fixed order.

    `auto` takes a BEIR folder or a table as such, and else every file by its suffix.

    Args:
        source: what the user declared.
        work: folder for what all parts need, such as an index of texts.

    Raises:
        DataError: nothing is there, nothing that a reader takes, or several splits or configurations and none
            is chosen.
        ResourceError: the store does not answer.
    """
    if source.format == "mteb":
        return READERS["mteb"].parts(source, find_files(source), work)
    files = list_files(_location(source))
    if source.format == "beir" or (source.format == "auto" and judged.is_beir(files)):
        return READERS["beir"].parts(source, files, work)
    if source.format == "auto" and table_format(files):
        return READERS["table"].parts(source, files, work)
    if source.format in ("auto", "hugging-face"):
        parts = [
            part
            for file in choose_files(source, files, SUFFIXES)
            for reader in READERS.values()
            if reader.takes(file)
            for part in reader.parts(source, [file], work)
        ]
    else:
        reader = READERS[source.format]
        parts = reader.parts(source, choose_files(source, files, reader.suffixes or ("",)), work)
    if not parts:
        raise DataError(
            f"{source.origin} has nothing to read as format {source.format}; files end in "
            f"{', '.join(SUFFIXES)}, or in these with .gz, .bz2, .zst, .lz4 or .xz; or say it with format"
        )
    return parts


def unread_files(files: Sequence[StoredFile], parts: Sequence[Part]) -> list[str]:
    """Names of files next to the parts that look like data and belong to no format."""
    if table_format(files):
        return []
    read = {part.file.uri for part in parts}
    passed = (".md", ".txt", ".py", ".yaml", ".png", ".svg", *SUFFIXES)
    return [
        file.name
        for file in files
        if file.uri not in read
        and "." in file.name.rpartition("/")[2]
        and not file.plain_name.endswith(passed)
        and not is_bookkeeping(file.name)
    ]


def read_part(part: Part) -> Iterator[Row]:
    """Rows of a part in order."""
    return READERS[part.format].read(part)


def _location(source: UserSourceConfig) -> str:
    return source.path or hub_location(str(source.hub), source.revision)

"""Folders of the Hugging Face `datasets` library: of save_to_disk, or the Parquet files of a copy of the hub.

The Arrow and Parquet files are read as they are; the library is not asked and no code of the folder is run.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records import parquet
from rayembed.records.base import Part, Reader, Row
from rayembed.records.locations import StoredFile
from rayembed.records.parquet import ClassNames

SPLITS = ("train", "validation", "valid", "dev", "test")


def recognises(files: Sequence[StoredFile]) -> bool:
    """Made by save_to_disk, or with Parquet files that are named by split and shard."""
    names = [file.name for file in files]
    saved = any(name.rpartition("/")[2] in ("state.json", "dataset_dict.json") for name in names)
    return saved or any(name.endswith(".parquet") and split_of(name) in SPLITS for name in names)


def parts(source: UserSourceConfig, files: Sequence[StoredFile], work: Path) -> list[Part]:
    """Arrow files whole, Parquet files by row groups, of one split.

    Raises:
        DataError: the folder has no such files, or several splits and not this one.
    """
    data = [file for file in files if file.name.endswith((".arrow", ".parquet"))]
    splits = {file: split_of(file.name) for file in data}
    if any(splits.values()):
        data = [file for file in data if splits[file] == source.split]
    if not data:
        known = ", ".join(sorted({split for split in splits.values() if split})) or "none"
        raise DataError(
            f"{source.path} has no split {source.split!r} of a Hugging Face dataset; splits: {known}"
        )
    arrow = [Part("hugging-face", file) for file in data if file.name.endswith(".arrow")]
    shards = parquet.parts(source, [file for file in data if file.name.endswith(".parquet")], work)
    return arrow + [replace(part, format="hugging-face") for part in shards]


def split_of(name: str) -> str | None:
    """Split that a file belongs to by its name: its folder, or what stands before the shard's number.

    A dataset saved without splits has none: its files are `data-00000-of-00001.arrow`.
    """
    folder, _, file = name.rpartition("/")
    if name.endswith(".arrow"):
        return folder.rpartition("/")[2] or None
    shard = re.match(r"(\w+)-\d{5}-of-\d{5}", file)
    return shard[1] if shard else None


def read(part: Part) -> Iterator[Row]:
    """Rows with the names of classes in place of their numbers."""
    if not part.file.name.endswith(".arrow"):
        yield from parquet.read(part)
        return
    try:
        with part.file.open() as opened, pa.ipc.open_stream(opened) as stream:
            names, number = ClassNames.of(stream.schema), 0
            for batch in stream:
                for record in parquet.records(batch):
                    number += 1
                    yield Row(number, names.named(record))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.file.uri} is not a complete Arrow file ({error}); save it again") from error


READER = Reader("hugging-face", (), recognises, parts, read)

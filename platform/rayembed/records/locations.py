"""Where the files of a source are: on the disk, in a store of pyarrow or fsspec, or on a hub."""

import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import location_of
from rayembed.common.stores import SCHEMES, answered, first_line, open_location

_CODECS = {
    ".gz": "gzip", ".gzip": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"
}  # fmt: skip
COMPRESSED = (*_CODECS, ".xz")

_PATTERN = re.compile(r"[*\[]")


@dataclass(frozen=True)
class StoredFile:
    """A file of a source: where it is, and what tells one state of it from another."""

    uri: str
    name: str  # below the folder that was given
    size: int
    changed: int  # nanoseconds since 1970, 0 where the store keeps no times

    @property
    def compressed(self) -> bool:
        """Whether its name says that it is compressed."""
        return self.name.lower().endswith(COMPRESSED)

    @property
    def plain_name(self) -> str:
        """Its name in lower case without the suffix of a compression."""
        name = self.name.lower()
        return name.rpartition(".")[0] if self.compressed else name

    def open(self) -> pa.NativeFile:
        """The file for random access."""
        filesystem, path = open_location(self.uri)
        return filesystem.open_input_file(path)

    def stream(self) -> Any:
        """The file from its beginning as bytes, decompressed where its name says that it is compressed."""
        filesystem, path = open_location(self.uri)
        suffix = f".{self.name.lower().rpartition('.')[2]}"
        if suffix == ".xz":
            return lzma.open(filesystem.open_input_stream(path))
        return filesystem.open_input_stream(path, compression=_CODECS.get(suffix))


def list_files(uri: str) -> list[StoredFile]:
    """The file at `uri`, or all files below the folder, hidden ones left out, sorted by path.

    A name with `*` or `[ab]` stands for the files that it fits: `texts/2026-*.jsonl`, `texts/**/*.parquet`.

    Raises:
        DataError: there is nothing at `uri`.
        ResourceError: the store does not answer or refuses.
    """
    filesystem, path = open_location(uri)
    given = answered(uri, lambda: filesystem.get_file_info(path))
    if given.type == fs.FileType.NotFound and _PATTERN.search(uri):
        return _fitting(uri)
    if given.type == fs.FileType.NotFound:
        raise DataError(f"{uri} does not exist; give a file, a folder, or a URI of one ({SCHEMES})")
    if given.type == fs.FileType.File:
        return [_stored(uri, given.base_name, given)]
    selector = fs.FileSelector(path, recursive=True)
    found = answered(uri, lambda: filesystem.get_file_info(selector))
    base, _, query = uri.partition("?")
    files = []
    for info in sorted(found, key=lambda info: info.path):
        name = info.path.removeprefix(path).lstrip("/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in name.split("/")):
            files.append(_stored(f"{base.rstrip('/')}/{name}{'?' if query else ''}{query}", name, info))
    return files


def names_files(location: str, files: Sequence[StoredFile]) -> bool:
    """Whether a location names its files, as one file or by a pattern, and not their folder."""
    return bool(_PATTERN.search(location)) or (len(files) == 1 and files[0].name in location)


def _fitting(pattern: str) -> list[StoredFile]:
    """Files whose path fits a pattern, under their names below the folder in front of the pattern."""
    folder, _, rest = re.sub(r"/?([^/]*[*\[].*)", r"\0\1", pattern, count=1).partition("\0")
    rest, _, query = rest.partition("?")
    matches = re.compile(glob_translate(rest)).match
    found = [
        file for file in list_files(f"{folder or '.'}{'?' if query else ''}{query}") if matches(file.name)
    ]
    if not found:
        raise DataError(f"no file fits {pattern}")
    return found


HUB_SECONDS = 10.0
_DESCRIPTIONS = ("README.md", "dataset_info.json", "dataset_infos.json")


@cache
def hub_location(name: str, revision: str | None) -> str:
    """Where the files of a hub data set are: a folder of that name, the cache, or a URI to stream from.

    A process asks once, so all that it reads is of one commit.

    Raises:
        DataError: the hub has no such data set or revision.
        ResourceError: it is not in the cache, and the hub does not answer.
    """
    import httpx  # with huggingface_hub, which takes long to import
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    filesystem, folder = open_location(name)
    if filesystem.get_file_info(folder).type == fs.FileType.Directory:
        return name
    try:
        cached = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
        if any(file.name not in _DESCRIPTIONS for file in list_files(cached)):
            return cached  # else only its card was looked at
    except huggingface_hub.errors.HFValidationError as error:
        raise DataError(f"hub: {name} is no name of a data set; give OWNER/NAME") from error
    except LocalEntryNotFoundError:
        pass
    try:
        found = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise DataError(
            f"the hub has no data set {name}{at}, or you may not read it; check the name, or log in"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise ResourceError(
            f"hub data set {name} is not in the cache and the hub does not answer ({first_line(error)}); "
            "connect to it, or copy the data set and give path"
        ) from error
    return f"hf://datasets/{name}@{found.sha}"


def _stored(uri: str, name: str, info: fs.FileInfo) -> StoredFile:
    return StoredFile(location_of(uri), name, info.size or 0, info.mtime_ns or 0)

"""Where the files of a source are: a local path, or a URI that pyarrow has a filesystem for."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import resolve

Result = TypeVar("Result")

ANSWER_SECONDS = 20.0
"""How long a store may take to answer the first question."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a source: where it is, and what tells one state of it from another."""

    uri: str
    name: str  # below the folder that was given
    size: int
    changed: int  # nanoseconds since 1970, 0 where the store keeps no times

    def open(self) -> pa.NativeFile:
        """The file for random access."""
        filesystem, path = open_location(self.uri)
        return filesystem.open_input_file(path)

    def stream(self) -> pa.NativeFile:
        """The file from its beginning, decompressed where its name ends in .gz, .bz2 or .zst."""
        filesystem, path = open_location(self.uri)
        return filesystem.open_input_stream(path, compression="detect")


def open_location(uri: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a URI or of a local path, which may be relative to the workspace.

    Raises:
        DataError: no filesystem for the scheme, or the URI is malformed.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(resolve(uri))
    try:
        return _answered(uri, lambda: fs.FileSystem.from_uri(uri))
    except pa.ArrowException as error:
        raise DataError(f"{uri} is not a location that can be read ({error}); {_SCHEMES}") from error


def list_files(uri: str) -> list[StoredFile]:
    """The file at `uri`, or all files below the folder, hidden ones left out, sorted by path.

    Raises:
        DataError: there is nothing at `uri`.
        ResourceError: the store does not answer or refuses.
    """
    filesystem, path = open_location(uri)
    given = _answered(uri, lambda: filesystem.get_file_info(path))
    if given.type == fs.FileType.NotFound:
        raise DataError(f"{uri} does not exist; give a file, a folder, or a URI of one ({_SCHEMES})")
    if given.type == fs.FileType.File:
        return [_stored(uri, given.base_name, given)]
    selector = fs.FileSelector(path, recursive=True)
    found = _answered(uri, lambda: filesystem.get_file_info(selector))
    base, _, query = uri.partition("?")
    files = []
    for info in sorted(found, key=lambda info: info.path):
        name = info.path.removeprefix(path).lstrip("/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in name.split("/")):
            files.append(_stored(f"{base.rstrip('/')}/{name}{'?' if query else ''}{query}", name, info))
    return files


_SCHEMES = "paths and the schemes s3, gs, abfss and file are read"


def _stored(uri: str, name: str, info: fs.FileInfo) -> StoredFile:
    location = uri if "://" in uri else str(resolve(uri))
    return StoredFile(location, name, info.size or 0, info.mtime_ns or 0)


def _answered(uri: str, question: Callable[[], Result]) -> Result:
    """Answer of a store. Its client may retry for minutes, so it is asked on a thread that can be left."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(question())
        except (OSError, pa.ArrowException) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not answer:
        raise ResourceError(f"{uri} did not answer in {ANSWER_SECONDS:.0f} s; {_CHECK}")
    if isinstance(answer[0], pa.ArrowInvalid):
        raise answer[0]
    if isinstance(answer[0], OSError | pa.ArrowException):
        raise ResourceError(f"{uri} cannot be read ({_first_line(answer[0])}); {_CHECK}") from answer[0]
    return answer[0]


_CHECK = "check the address, the network and the credentials in the environment, then run it again"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

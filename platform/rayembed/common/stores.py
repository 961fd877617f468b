"""Opening stores, and the cache of a node for files in them, which `paths` stands for with ordinary paths.

A file here is that of the store when size and time of change are the same. For files of a folder:
    here 10 bytes of 12:00    store 10 bytes of 12:00    kept
    here 10 bytes of 12:00    store 10 bytes of 12:05    fetched
    here 14 bytes of 12:07    store 10 bytes of 12:05    kept: a process of this node still adds to it
    here 10 bytes of 12:00    store has none             deleted
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from filelock import FileLock
from pyarrow import fs

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import cache_root, clear_disk_errors, here, location_of

ANSWER_SECONDS = 20.0
"""How long a store may take to answer the first question."""

WAITS = (1.0, 5.0)
"""Seconds before a store that failed is asked again."""

SCHEMES = "paths, s3, gs, abfss, hf, file and the schemes of fsspec are read"

_CHECK = "check the address, the network and the credentials in the environment, then run it again"
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_UNFINISHED = ".unfinished"  # in a folder of the store while its files are pushed
_FILES_AT_A_TIME = 8
_BYTES_AT_A_TIME = 2**23
_UNUSED_SECONDS = 7 * 86_400.0  # after which a node drops its copy

Result = TypeVar("Result")
Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def open_location(location: str | Path) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a URI or of a local path, which may be relative to the workspace.

    Raises:
        DataError: no filesystem for the scheme, or the URI is malformed.
    """
    uri = location_of(location)
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    # A small file is one request with this option, else three.
    quick = f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true" if uri.startswith("s3://") else uri
    try:
        return answered(uri, lambda: fs.FileSystem.from_uri(quick))
    except pa.ArrowException as error:
        try:
            filesystem, path = answered(uri, lambda: fsspec.core.url_to_fs(uri))
        except (ValueError, ImportError):
            raise DataError(f"{uri} is not a location that can be read ({error}); {SCHEMES}") from error
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def answered(uri: str, question: Callable[[], Result]) -> Result:
    """Answer of a store. Its client may retry for minutes, so it is asked on a thread that can be left.

    Raises:
        ResourceError: it does not answer or refuses.
    """
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(question())
        except Exception as error:  # noqa: BLE001  # raised again on the thread that asked
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not answer:
        raise ResourceError(f"{uri} did not answer in {ANSWER_SECONDS:.0f} s; {_CHECK}")
    if isinstance(answer[0], OSError | pa.ArrowException) and not isinstance(answer[0], pa.ArrowInvalid):
        raise ResourceError(f"{uri} cannot be read ({first_line(answer[0])}); {_CHECK}") from answer[0]
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0][:300]


def listed(filesystem: fs.FileSystem, path: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    """What is in a folder; nothing where it is not there.

    `allow_not_found` is not enough: pyarrow opens the folder, and only after a failure asks whether it is
    there. One that another process makes between the two raises FileNotFoundError.
    """
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    for _ in range(9):
        with contextlib.suppress(FileNotFoundError):
            return filesystem.get_file_info(selector)
    return filesystem.get_file_info(selector)


def fetch(path: Path, *, weights: bool) -> None:
    """Make a path of the cache what it stands for; see `paths.fetch`."""
    _drop_unused()
    filesystem, place = _store(path)
    with _locked(path), clear_disk_errors(path):
        stored = patiently(path, lambda: _stored(filesystem, place))
        for name, file in _local(path).items():
            if name not in stored:
                file.unlink()
        changed = []
        for name, info in stored.items():
            if weights or not name.endswith(_WEIGHTS):
                if _is_here(path / name, info):
                    os.utime(path / name, ns=(time.time_ns(), (path / name).stat().st_mtime_ns))
                else:
                    changed.append((path / name, info))
        _each(changed, partial(_download, filesystem))
        for folder in [*sorted(path.rglob("*"), reverse=True), path] if not stored else ():
            with contextlib.suppress(OSError):  # it is a file, or another process writes in it
                folder.rmdir()


def push(path: Path, *, whole: bool, source: Path) -> None:
    """Bring what is at `source` to the store where a path of the cache says; see `paths.push`."""
    filesystem, place = _store(path)
    if source.is_file():
        return _upload(filesystem, (source, place))
    stored = patiently(path, lambda: _stored(filesystem, place, unfinished=True))
    files = {
        name: file for name, file in _local(source).items() if whole or not _is_same(file, stored.get(name))
    }
    mark = f"{place}/{_UNFINISHED}"
    if whole:
        patiently(path, lambda: _write(filesystem, mark, lambda stream: stream.write(b"\n")))
        _each(stored.keys() - files.keys(), lambda name: filesystem.delete_file(f"{place}/{name}"))
    _each([(file, f"{place}/{name}") for name, file in files.items()], partial(_upload, filesystem))
    if whole:
        patiently(path, lambda: filesystem.delete_file(mark))


def remove(path: Path) -> None:
    """Delete what a path of the cache stands for; see `paths.remove`."""
    filesystem, place = _store(path)

    def delete() -> None:
        kind = filesystem.get_file_info(place).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(place)
        elif kind == fs.FileType.File:
            filesystem.delete_file(place)

    patiently(path, delete)


@cache
def _opened(location: str) -> tuple[fs.FileSystem, str]:
    return open_location(location)


def _store(path: Path) -> tuple[fs.FileSystem, str]:
    """Filesystem and path that a path of the cache stands for; the client of a store is made once."""
    root = here(path).relative_to(cache_root()).parts[:2]
    filesystem, base = _opened(location_of(cache_root().joinpath(*root)))
    return filesystem, "/".join([base, *here(path).relative_to(cache_root()).parts[2:]])


def _stored(filesystem: fs.FileSystem, place: str, *, unfinished: bool = False) -> dict[str, fs.FileInfo]:
    """Files of a folder by their names in it, or a file under an empty name; none of unfinished folders."""
    folder_mark = f"{place.rpartition('/')[0]}/{_UNFINISHED}"
    given, mark = filesystem.get_file_info([place, folder_mark])
    found = {"": given} if given.type == fs.FileType.File else {}
    if given.type == fs.FileType.Directory:
        files = [info for info in listed(filesystem, place, recursive=True) if info.type == fs.FileType.File]
        found = {info.path.removeprefix(place).lstrip("/"): info for info in files}
    if not unfinished:
        if mark.type == fs.FileType.File:
            return {}
        halves = tuple(name.removesuffix(_UNFINISHED) for name in found if name.endswith(_UNFINISHED))
        found = {name: info for name, info in found.items() if not name.startswith(halves)}
    return {name: info for name, info in found.items() if not _is_hidden(name)}


def _local(path: Path) -> dict[str, Path]:
    """The same of this node."""
    if path.is_file():
        return {"": path}
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_here(file: Path, info: fs.FileInfo) -> bool:
    """Whether a file need not be fetched: it is the same, or a process of this node has changed it since."""
    return _is_same(file, info) or (file.is_file() and file.stat().st_mtime_ns > (info.mtime_ns or 2**63))


def _is_same(file: Path, info: fs.FileInfo | None) -> bool:
    if info is None or not info.mtime_ns or not file.is_file():  # some stores keep no times
        return False
    return (file.stat().st_size, file.stat().st_mtime_ns) == (info.size, info.mtime_ns)


def _download(filesystem: fs.FileSystem, wanted: tuple[Path, fs.FileInfo]) -> None:
    path, info = wanted

    def copy() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as temporary:
            try:
                with filesystem.open_input_stream(info.path) as stream:
                    shutil.copyfileobj(stream, temporary, _BYTES_AT_A_TIME)
                temporary.close()
                if (size := os.path.getsize(temporary.name)) != info.size:
                    raise OSError(f"{size} bytes came of {info.size}")
                os.chmod(temporary.name, 0o644)
                os.utime(temporary.name, ns=(time.time_ns(), info.mtime_ns or time.time_ns()))
                os.replace(temporary.name, path)
            finally:
                Path(temporary.name).unlink(missing_ok=True)

    patiently(path, copy)


def _upload(filesystem: fs.FileSystem, given: tuple[Path, str]) -> None:
    path, place = given

    def copy() -> None:
        changed = path.stat().st_mtime_ns
        with path.open("rb") as file:
            _write(filesystem, place, lambda stream: shutil.copyfileobj(file, stream, _BYTES_AT_A_TIME))
        stored = filesystem.get_file_info(place).mtime_ns
        if stored and path.stat().st_mtime_ns == changed:
            os.utime(path, ns=(time.time_ns(), stored))

    patiently(path, copy)


def _write(filesystem: fs.FileSystem, place: str, write: Callable[[Any], object]) -> None:
    """Write a file, which appears when it is complete; object stores need no folder for it."""
    try:
        stream = filesystem.open_output_stream(place)
    except FileNotFoundError:
        filesystem.create_dir(place.rpartition("/")[0])
        stream = filesystem.open_output_stream(place)
    with stream:
        write(stream)


def _each(items: Iterable[Item], call: Callable[[Item], object]) -> None:
    """Call with each item, several at a time; the first error is raised when all are through."""
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        for done in [pool.submit(call, item) for item in items]:
            done.result()


def patiently(place: str | Path, call: Callable[[], Result]) -> Result:
    """What a call of a store returns, made again where it fails.

    Raises:
        FileNotFoundError: as the store raised it.
        ResourceError: it failed each time.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if wait is None:
                raise ResourceError(f"{location_of(place)} failed ({first_line(error)}); {_CHECK}") from error
            logger.warning("%s failed (%s); it is tried again", location_of(place), first_line(error))
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _locked(path: Path) -> FileLock:
    """One process of a node fetches a path at a time; the others find it here."""
    folder = cache_root() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / hashlib.sha256(str(path).encode()).hexdigest()[:32])


@cache
def _drop_unused() -> None:
    """Delete copies that no process has asked for in a week; once in a process."""
    for file in cache_root().rglob("*"):
        if file.is_file() and time.time() - file.stat().st_atime > _UNUSED_SECONDS:
            file.unlink(missing_ok=True)

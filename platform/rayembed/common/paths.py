"""Where files go: the workspace, on the disk or in a store, atomic writes and content digests.

A place in a store is a path too: `resolve("s3://bucket/runs")` is `rayembed-stores/s3/bucket/runs` in the
cache of this node. What `atomic_file` and `atomic_directory` write there is pushed to the store. Code that
reads what another process may have written asks `fetch` for it. The store has the truth, so the cache may be
deleted at any time. Other paths are themselves, and nothing is fetched or pushed.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from rayembed.common.errors import ResourceError

logger = logging.getLogger(__name__)

_RAY_PACKAGE_MARKER = "runtime_resources"  # in the path of a working directory copied by Ray
_CACHE = "rayembed-stores"
_TEMPORARY = ".tmp"  # end of the names of folders that are not complete
_URI = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")  # pathlib joins the slashes


def workspace() -> Path:
    """Folder that relative paths of a recipe refer to.

    It is the environment variable RAYEMBED_HOME where that is set, a folder or a URI, else the current
    folder. A job that Ray started from an uploaded `--working-dir` runs in a throw-away copy, so there the
    fallback is `~/.rayembed`.
    """
    declared = os.environ.get("RAYEMBED_HOME")
    if declared and _URI.match(declared):
        return resolve(declared)
    if declared:
        return Path(declared).expanduser().resolve()
    current = Path.cwd()
    if _RAY_PACKAGE_MARKER in current.parts:
        home = Path.home() / ".rayembed"
        logger.info("relative paths resolve against %s; set RAYEMBED_HOME to choose another folder", home)
        return home
    return current


def resolve(path: str | Path) -> Path:
    """Absolute form of `path`; a relative one is taken from `workspace()`, a URI is one of the cache."""
    if found := _URI.match(str(path)):
        scheme, place = found.groups()
        if scheme == "file":
            return Path("/", place)
        folder, _, query = place.partition("?")
        bucket, _, name = folder.partition("/")
        host = quote(bucket, safe="") + ("?" + quote(query, safe="") if query else "")
        return cache_root() / scheme / host / name
    path = Path(path).expanduser()
    return here(path) if path.is_absolute() else workspace() / path


def cache_root() -> Path:
    """Folder of this node for files of stores: in RAYEMBED_CACHE, else in `~/.cache`."""
    return Path(os.environ.get("RAYEMBED_CACHE") or "~/.cache").expanduser() / _CACHE


def is_stored(path: Path) -> bool:
    """Whether a path stands for one in a store; one in a folder that is not complete does not."""
    return _CACHE in path.parts and not any(part.endswith(_TEMPORARY) for part in path.parts)


def here(path: Path) -> Path:
    """A path of some node's cache in that of this node; other paths are themselves."""
    if _CACHE not in path.parts:
        return path
    return cache_root().joinpath(*path.parts[path.parts.index(_CACHE) + 1 :])


def location_of(location: str | Path) -> str:
    """The URI that a path stands for, or the absolute path; a URI is itself."""
    if isinstance(location, str) and "://" in location:
        return location
    path = here(resolve(location))
    if not is_stored(path):
        return str(path)
    scheme, host, *names = path.relative_to(cache_root()).parts
    bucket, mark, query = (unquote(part) for part in host.partition("?"))
    return f"{scheme}://{'/'.join([bucket, *names])}{mark}{query}"


def fetch(path: str | Path, *, weights: bool = True) -> Path:
    """Where a file or folder is on this node, as its store has it now.

    What the store lacks, or has not to its end, is not here either.

    Args:
        path: any path or name; those that stand for one in a store may be of another node's cache.
        weights: False leaves out the large files of a model.

    Raises:
        ResourceError: the store fails, or the disk is full.
    """
    path = here(Path(path))
    if is_stored(path):
        from rayembed.common import stores  # pyarrow and fsspec, which commands on the disk do without

        stores.fetch(path, weights=weights)
    return path


def push(path: Path, *, whole: bool = False, source: Path | None = None) -> None:
    """Bring a file, or what has changed of a folder, to the store that its path stands for.

    Args:
        path: of this node's cache; with others nothing is done.
        whole: the folder replaces that of the store. Until all is there, `fetch` finds nothing.
        source: where it is as long as it is not at `path`.

    Raises:
        ResourceError: the store fails.
    """
    if is_stored(path):
        from rayembed.common import stores

        stores.push(path, whole=whole, source=source or path)


def remove(path: Path) -> None:
    """Delete a file or folder where there is one, on the disk and in the store that its path stands for.

    Raises:
        ResourceError: the store fails.
    """
    path = here(path)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if is_stored(path):
        from rayembed.common import stores

        stores.remove(path)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target` that replaces it on success and is removed on error."""
    target = here(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(_TEMPORARY, f".{target.name}.", target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        push(target, whole=True, source=temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary file next to `target` that replaces it on success and is removed on error.

    A reader sees the old or the new content, never a part.
    """
    target = here(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        push(target, source=Path(name))
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def atomic_write(target: Path, data: str | bytes) -> None:
    """Replace the content of `target` in one step (see `atomic_file`)."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" while something is written below `folder` into a sentence.

    Raises:
        ResourceError: the disk or the user's share of it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"no space is left on the disk of {folder}; free some or choose another folder, then run the "
            "same command again: what is complete is kept"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Where files go: the workspace, atomic writes and content digests."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rayembed.common.errors import ResourceError

logger = logging.getLogger(__name__)

_RAY_PACKAGE_MARKER = "runtime_resources"  # in the path of a working directory copied by Ray


def workspace() -> Path:
    """Folder that relative paths of a recipe refer to.

    It is the environment variable RAYEMBED_HOME where that is set, else the current folder. A job that Ray
    started from an uploaded `--working-dir` runs in a throw-away copy, so there the fallback is
    `~/.rayembed`.
    """
    declared = os.environ.get("RAYEMBED_HOME")
    if declared:
        return Path(declared).expanduser().resolve()
    current = Path.cwd()
    if _RAY_PACKAGE_MARKER in current.parts:
        home = Path.home() / ".rayembed"
        logger.info("relative paths resolve against %s; set RAYEMBED_HOME to choose another folder", home)
        return home
    return current


def resolve(path: str | Path) -> Path:
    """Absolute form of `path`; a relative one is taken from `workspace()`."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else workspace() / path


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target` that replaces it on success and is removed on error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
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
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
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

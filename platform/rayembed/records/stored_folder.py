"""A folder on a disk or in a store, whose files appear when they are complete."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from rayembed.common.paths import clear_disk_errors
from rayembed.common.stores import listed, open_location, patiently

_ABANDONED_NS = 24 * 3600 * 10**9


class StoredFolder:
    """Files below a path or a URI, by their names in it."""

    def __init__(self, location: str, name: str = ""):
        """The folder `name` at a location.

        Raises:
            DataError: the scheme is unknown.
            ResourceError: the store does not answer.
        """
        filesystem, path = open_location(location)
        self._location = location
        self._path = f"{path}/{name}".rstrip("/")
        self.files = fs.SubTreeFileSystem(self._path, filesystem)

    def create(self) -> None:
        """Make the folder if it is not there; delete what processes that were killed have left in it."""
        self.files.base_fs.create_dir(self._path)
        oldest = time.time_ns() - _ABANDONED_NS
        for info in self.files.get_file_info(fs.FileSelector("")):
            if info.base_name.startswith(".") and info.mtime_ns and info.mtime_ns < oldest:
                self.delete(info.path)

    def get(self, name: str) -> bytes | None:
        """Content of a file; None where there is none.

        A stream of S3 asks for the size first, then for that many bytes. Of a file that becomes longer
        between the two, they are a part: "9" and then "10" would be read as "1".
        """

        def read() -> bytes:
            while True:
                with self.files.open_input_stream(name) as stream:
                    content: bytes = stream.read()
                if self.files.get_file_info(name).size == len(content):
                    return content

        try:
            return patiently(self._location, read)
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Store a file, in place of an earlier one; ResourceError: the disk is full or the store fails."""

        def write() -> None:
            with self.writing(name) as stream:
                stream.write(data)

        patiently(self._location, write)

    @contextlib.contextmanager
    def writing(self, name: str | Callable[[], str]) -> Iterator[pa.NativeFile]:
        """Yield a stream whose file appears at the end of the block, and not at all after an error.

        Args:
            name: of the file, or what gives it at the end of the block.
        """
        temporary = f".{uuid4().hex}"
        with clear_disk_errors(Path(self._path)):
            try:
                with self.files.open_output_stream(temporary) as stream:
                    yield stream
                target = name if isinstance(name, str) else name()
                if folder := target.rpartition("/")[0]:
                    self.files.create_dir(folder)
                self.files.move(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    self.files.delete_file(temporary)
                raise

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files and folders in a folder; none where it is not there."""
        found = patiently(self._location, lambda: listed(self.files, folder))
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return patiently(self._location, lambda: self.files.get_file_info(name)).type != fs.FileType.NotFound

    def delete(self, name: str) -> None:
        """Delete a file that may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self.files.delete_file(name)

    def remove(self) -> None:
        """Delete the folder and all in it."""
        self.files.base_fs.delete_dir(self._path)

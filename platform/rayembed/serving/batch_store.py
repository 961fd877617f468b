"""Where the files and batches of /v1/files and /v1/batches lie, each owner's apart.

    OWNER/files/file-ID            content
    OWNER/files/file-ID.json       `FileObject`
    OWNER/batches/batch_ID.json    `Batch`; written by the process that works on it
    OWNER/batches/batch_ID.cancel  somebody asked for its end
    parts/batch_ID/000002-511-1    answers to a piece of its input, with how many succeeded and failed
    open/OWNER.batch_ID            it has not ended; who works on it and until when

An owner is an API key, or all clients where there are no keys. Any front end answers any question from these
files, and a batch goes on where its last part ends, whichever process does it.
"""

import io
import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import BaseModel

from rayembed.records.stored_folder import StoredFolder
from rayembed.serving.errors import ApiError, Problem

EVERYBODY = "all"
"""The owner where there are no keys."""
_READ_BYTES = 2**20
_NAME = re.compile(r"(file-|batch_)[0-9a-f]{32,33}")
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED = ("failed", "completed", "expired", "cancelled")
Found = TypeVar("Found", "FileObject", "Batch")


class FileObject(BaseModel):
    """A file as OpenAI describes it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class BatchError(BaseModel):
    """Why a batch failed as a whole, or one line of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    """All reasons of a failed batch."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Lines of the input; completed and failed add up to the total when the batch has ended."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """A batch as OpenAI describes it; times are in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    completion_window: str
    input_file_id: str
    status: Status = "validating"
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchErrors | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None

    def enter(self, status: Status) -> None:
        """Change the status and note when."""
        self.status = status
        setattr(self, f"{status}_at", int(time.time()))


class BatchStore:
    """Reads and writes all of it; every method may wait for the store."""

    def __init__(self, location: str):
        """Raises DataError or ResourceError where nothing can be stored at a path or URI."""
        self.folder = StoredFolder(location)
        self.folder.create()

    def file(self, owner: str, name: str) -> FileObject:
        """A file's description; ApiError 404 where the owner has none of that name."""
        return self._one(owner, "files", name, FileObject)

    def batch(self, owner: str, name: str) -> Batch:
        """A batch as it is now; ApiError 404 where the owner has none of that name."""
        return self._as_it_is(owner, self._one(owner, "batches", name, Batch))

    def list_files(self, owner: str, purpose: str, after: str, limit: int) -> tuple[list[FileObject], bool]:
        """Files, the newest first, from behind `after`; and whether there are more."""
        return self._newest(
            owner, "files", after, limit, lambda file: purpose in ("", file.purpose), FileObject
        )

    def list_batches(self, owner: str, after: str, limit: int) -> tuple[list[Batch], bool]:
        """Batches, the newest first, from behind `after`; and whether there are more."""
        found, more = self._newest(owner, "batches", after, limit, lambda batch: True, Batch)
        return [self._as_it_is(owner, batch) for batch in found], more

    def read(self, owner: str, file: FileObject) -> io.BufferedReader:
        """The content, from its beginning; FileNotFoundError where it was deleted."""
        return self.opened(f"{owner}/files/{file.id}")

    def opened(self, name: str) -> io.BufferedReader:
        """A file of the folder, fetched in pieces that suit a store."""
        return io.BufferedReader(self.folder.files.open_input_file(name), _READ_BYTES)

    def describe(self, owner: str, file: FileObject) -> None:
        """Make a file known whose content is written."""
        self.folder.put(f"{owner}/files/{file.id}.json", file.model_dump_json().encode())

    def delete_file(self, owner: str, name: str) -> None:
        """Delete a file; ApiError 409 while a batch reads it."""
        self.file(owner, name)
        for reader, batch in self.open_batches():
            if reader == owner and self.batch(owner, batch).input_file_id == name:
                message = f"{batch} reads this file; cancel it first"
                raise ApiError(Problem(409, message, code="file_in_use"))
        self.folder.delete(f"{owner}/files/{name}.json")
        self.folder.delete(f"{owner}/files/{name}")

    def save(self, owner: str, batch: Batch) -> None:
        """Store the state of a batch."""
        self.folder.put(f"{owner}/batches/{batch.id}.json", batch.model_dump_json().encode())

    def open(self, owner: str, batch: Batch) -> None:
        """Store a new batch, to be worked on by the process that sees it first."""
        self.save(owner, batch)
        self.lend(owner, batch.id, "", 0)

    def open_batches(self) -> list[tuple[str, str]]:
        """Owner and name of every batch that has not ended, the oldest first."""
        names = (name.split(".") for name in self.folder.names("open"))
        return sorted(((owner, batch) for owner, batch in names), key=lambda pair: pair[1])

    def lend(self, owner: str, name: str, holder: str, seconds: float) -> None:
        """Let one process work on a batch for some seconds."""
        lease = {"holder": holder, "until": time.time() + seconds}
        self.folder.put(f"open/{owner}.{name}", json.dumps(lease).encode())

    def holder(self, owner: str, name: str) -> str:
        """The process that works on a batch now; empty for none."""
        lease = json.loads(self.folder.get(f"open/{owner}.{name}") or b'{"until": 0}')
        return lease["holder"] if lease["until"] > time.time() else ""

    def cancel(self, owner: str, name: str) -> Batch:
        """Ask for the end of a batch; ApiError 409 where it has ended."""
        batch = self.batch(owner, name)
        if batch.status in ENDED:
            raise ApiError(Problem(409, f"this batch is {batch.status}", code="batch_ended"))
        if batch.status != "cancelling":
            self.folder.put(f"{owner}/batches/{name}.cancel", str(int(time.time())).encode())
        return self.batch(owner, name)

    def is_cancelled(self, owner: str, name: str) -> bool:
        """Whether somebody asked for its end."""
        return self.folder.get(f"{owner}/batches/{name}.cancel") is not None

    def parts(self, name: str) -> dict[int, str]:
        """The finished parts of a batch: file by number."""
        return {
            int(part.split("-")[0]): f"parts/{name}/{part}" for part in self.folder.names(f"parts/{name}")
        }

    def counts(self, batch: Batch) -> RequestCounts:
        """Lines that are answered so far."""
        answered = [part.rsplit("-", 2)[1:] for part in self.parts(batch.id).values()]
        completed, failed = (sum(int(part[place]) for part in answered) for place in (0, 1))
        return RequestCounts(total=batch.request_counts.total, completed=completed, failed=failed)

    def close(self, owner: str, name: str) -> None:
        """Delete what a batch needs only before its end."""
        for part in self.parts(name).values():
            self.folder.delete(part)
        self.folder.delete(f"{owner}/batches/{name}.cancel")
        self.folder.delete(f"open/{owner}.{name}")

    def _one(self, owner: str, kind: str, name: str, model: type[Found]) -> Found:
        stored = self.folder.get(f"{owner}/{kind}/{name}.json") if _NAME.fullmatch(name) else None
        if stored is None:
            message = f"you have none of that name; GET /v1/{kind} lists them"
            raise ApiError(Problem(404, message))
        return model.model_validate_json(stored)

    def _newest(
        self, owner: str, kind: str, after: str, limit: int, fits: Callable[[Found], bool], model: type[Found]
    ) -> tuple[list[Found], bool]:
        found: list[Found] = []
        for name in reversed(self.folder.names(f"{owner}/{kind}")):
            if not name.endswith(".json") or (after and name >= f"{after}.json"):
                continue
            stored = self.folder.get(f"{owner}/{kind}/{name}")
            if stored and fits(entry := model.model_validate_json(stored)):
                found.append(entry)
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    def _as_it_is(self, owner: str, batch: Batch) -> Batch:
        """With the progress of the moment and a wish for its end."""
        if batch.status not in ENDED:
            batch.request_counts = self.counts(batch)
            if wish := self.folder.get(f"{owner}/batches/{batch.id}.cancel"):
                batch.status, batch.cancelling_at = "cancelling", int(wish)
        return batch


def new_name(kind: str) -> str:
    """An unused name; names sort by time."""
    return f"{kind}{time.time_ns() // 10**6:012x}{secrets.token_hex(10)}"

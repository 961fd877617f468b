"""OpenAI's /v1/files and /v1/batches: many requests in one file, answered when there is room.

Both are there when the setting `batches` names a folder for them.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StrictStr
from starlette.requests import ClientDisconnect
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, File, MultipartDecoder, NeedData
from werkzeug.sansio.multipart import Field as FormField

from rayembed.serving.api.dialect import ERROR_RESPONSES, AnyText, Record, dialect_router
from rayembed.serving.batch_store import EVERYBODY, Batch, BatchStore, FileObject, new_name
from rayembed.serving.batch_worker import BatchWorker
from rayembed.serving.body import FILES_PATH, SLOWEST_S, Body
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.middleware import RequestRecord

_FORM_BYTES = 2**16  # of a form next to the file
_MOST_PARTS = 10
_SLOWEST_BYTES = 2**17  # a second
_PIECE = 2**20
_WINDOW_S = 24 * 3600
_FORM = {
    "type": "object",
    "required": ["purpose", "file"],
    "additionalProperties": False,
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary"},
    },
}
Metadata = Annotated[
    dict[Annotated[AnyText, Field(max_length=64)], Annotated[AnyText, Field(max_length=512)]],
    Field(max_length=16),
]
_FORM_RULE = "send multipart/form-data with the fields purpose and file"


class BatchRequest(Body):
    """Body of POST /v1/batches."""

    input_file_id: StrictStr
    endpoint: Literal["/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class FileList(BaseModel):
    """Body of GET /v1/files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchList(BaseModel):
    """Body of GET /v1/batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """Body of DELETE /v1/files/ID."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


After = Annotated[str, Query(description="the last one of the page before")]


def _listed(found: tuple[list[Any], bool]) -> dict[str, Any]:
    data, more = found
    ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": more, **ends}


def _owner(record: RequestRecord) -> str:
    return record.account.owner if record.account else EVERYBODY


def routes(worker: BatchWorker | None, most_bytes: int) -> APIRouter:
    """Routes for files of at most `most_bytes`, and batches of them; without a worker they say so.

    What waits for the store is no coroutine: FastAPI calls it in a thread.
    """
    router = dialect_router("Batches")
    if worker is None:

        @router.api_route("/v1/files{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
        @router.api_route("/v1/batches{rest:path}", methods=["GET", "POST"], include_in_schema=False)
        async def absent(rest: str) -> None:
            message = "this endpoint keeps no files; its setting batches names a folder for them"
            raise ApiError(Problem(404, message))

        return router
    store = worker.store

    @router.post(
        FILES_PATH,
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
        },
    )
    async def upload(request: Request, record: Record) -> FileObject:
        """Store a file of requests, one a line: custom_id, method, url and body."""
        return await _upload(request, store, _owner(record), most_bytes)

    @router.get(FILES_PATH)
    def files(
        record: Record,
        purpose: str = "",
        after: After = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        order: Literal["desc"] = "desc",
    ) -> FileList:
        """The files of this key, the newest first."""
        return FileList(**_listed(store.list_files(_owner(record), purpose, after, limit)))

    @router.get("/v1/files/{name}")
    def file(name: str, record: Record) -> FileObject:
        """Description of a file."""
        return store.file(_owner(record), name)

    @router.delete("/v1/files/{name}", responses={409: ERROR_RESPONSES[400]})
    def delete_file(name: str, record: Record) -> DeletedFile:
        """Delete a file that no batch reads."""
        store.delete_file(_owner(record), name)
        return DeletedFile(id=name)

    @router.get("/v1/files/{name}/content", response_class=StreamingResponse)
    def content(name: str, record: Record) -> StreamingResponse:
        """Content of a file."""
        found = store.file(_owner(record), name)
        stream = store.read(_owner(record), found)

        def pieces() -> Iterator[bytes]:
            with stream:
                while piece := stream.read(_PIECE):
                    yield piece

        length = {"Content-Length": str(found.bytes)}
        return StreamingResponse(pieces(), media_type="application/jsonl", headers=length)

    @router.post("/v1/batches")
    def create(request: BatchRequest, record: Record) -> Batch:
        """Answer the requests of a file when there is room, within 24 hours."""
        owner = _owner(record)
        purpose = store.file(owner, request.input_file_id).purpose
        if purpose != "batch":
            message = "input_file_id: this is the output of a batch; send a file with the purpose batch"
            raise ApiError(Problem(400, message, "input_file_id"))
        now = int(time.time())
        batch = Batch(
            id=new_name("batch_"), created_at=now, expires_at=now + _WINDOW_S, **request.model_dump()
        )
        store.open(owner, batch)
        worker.wake()
        return batch

    @router.get("/v1/batches")
    def batches(
        record: Record, after: After = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> BatchList:
        """The batches of this key, the newest first."""
        return BatchList(**_listed(store.list_batches(_owner(record), after, limit)))

    @router.get("/v1/batches/{name}")
    def batch(name: str, record: Record) -> Batch:
        """A batch and how far it is."""
        return store.batch(_owner(record), name)

    @router.post("/v1/batches/{name}/cancel", responses={409: ERROR_RESPONSES[400]})
    def cancel(name: str, record: Record) -> Batch:
        """End a batch; what is answered by then stays."""
        cancelled = store.cancel(_owner(record), name)
        worker.wake()
        return cancelled

    return router


async def _upload(request: Request, store: BatchStore, owner: str, most: int) -> FileObject:
    """Write the file of a form to the store while it arrives.

    Raises:
        ApiError: the form is not as it must be, too large or too slow; then nothing is stored.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise ApiError(Problem(400, _FORM_RULE))
    too_large = ApiError(Problem(413, f"the file is above {most} bytes; split it"))
    if int(request.headers.get("content-length", 0)) > most + _FORM_BYTES:
        raise too_large
    decoder = MultipartDecoder(options["boundary"].encode(), 2 * _PIECE, max_parts=_MOST_PARTS)
    file = FileObject(
        id=new_name("file-"), bytes=0, created_at=int(time.time()), filename="", purpose="batch"
    )
    name, fields = "", {"purpose": b"", "file": b""}
    received, started = 0, asyncio.get_running_loop().time()
    try:
        async with (
            asyncio.timeout(SLOWEST_S) as patience,
            contextmanager_in_threadpool(store.folder.writing(f"{owner}/files/{file.id}")) as stored,
        ):
            async for chunk in request.stream():
                received += len(chunk)
                if received > most + _FORM_BYTES:
                    raise too_large
                patience.reschedule(started + SLOWEST_S + received / _SLOWEST_BYTES)
                for event in _events(decoder, chunk):
                    if isinstance(event, File | FormField):
                        name = str(event.name)
                        if name not in fields:
                            message = f"this endpoint does not know the field {name[:40]}; leave it out"
                            raise ApiError(Problem(400, message, name[:40], "unknown_field"))
                        file.filename = event.filename[:255] if isinstance(event, File) else file.filename
                    elif isinstance(event, Data) and name == "file":
                        await run_in_threadpool(stored.write, event.data)
                        file.bytes += len(event.data)
                    elif isinstance(event, Data) and name:
                        fields[name] = (fields[name] + event.data)[:_FORM_BYTES]
            if file.bytes > most:
                raise too_large
            if fields["purpose"] != b"batch":
                message = 'purpose: this endpoint has only "batch"; send it with the field file'
                raise ApiError(Problem(400, message, "purpose"))
        await run_in_threadpool(store.describe, owner, file)
    except TimeoutError as error:
        message = f"the file did not arrive at {_SLOWEST_BYTES} bytes a second"
        raise ApiError(Problem(408, message, code="request_timeout")) from error
    except ClientDisconnect as error:
        raise ApiError(Problem(400, _FORM_RULE)) from error
    return file


def _events(decoder: MultipartDecoder, chunk: bytes) -> Iterator[Event]:
    """What a form has next, given its next bytes; none stand for its end."""
    try:
        decoder.receive_data(chunk or None)
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            yield event
    except (ValueError, RequestEntityTooLarge) as error:
        raise ApiError(Problem(400, f"the form cannot be read; {_FORM_RULE}")) from error

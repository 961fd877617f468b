"""Works through batches, in threads of a front end, with the same answers that requests get.

Every line becomes a request of bulk priority. About two passes of the model are asked at a time, so an online
request waits for one batch at most. Answers are stored part by part:

    input lines 1 to 512, or 1 MiB of them   ->  part 0: 511 lines "+{...}" and one "-{...}", a failure
    the next ones                            ->  part 1
    all parts                                ->  output file from "+", error file from "-"

A process that starts again leaves out the parts that are there. A lease tells front ends who works on a
batch. Should two do so, they store the same parts.
"""

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

import orjson

from rayembed.serving.api.openai import EmbeddingRequest, embed
from rayembed.serving.authentication import Keyring
from rayembed.serving.batch_lines import LineReader, ReadLine, numbered_lines
from rayembed.serving.batch_store import (
    ENDED,
    EVERYBODY,
    Batch,
    BatchError,
    BatchErrors,
    BatchStore,
    FileObject,
)
from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem, failed
from rayembed.serving.middleware import RequestRecord
from rayembed.serving.router import ModelRouter

logger = logging.getLogger(__name__)

ENDPOINT = "/v1/embeddings"
MOST_LINES = 50_000
_AT_ONCE = 4
_LOOK_S, _LEASE_S = 10, 40
_LINES_ASKED = 256
_LONGEST_PAUSE_S = 5
_LOST_REPLICAS = 3  # answers of 503 to one line, after which it may be what kills replicas
_CHARACTERS_A_TOKEN = 4
_ENDS = {
    "batch_cancelled": "the batch was cancelled before this request was answered",
    "batch_expired": "the completion window ended before this request was answered",
}


class _Stopped(Exception):
    """This process no longer works on the batch."""


@dataclass(eq=False)
class _Job:
    owner: str
    name: str
    stop: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread = field(init=False)


class BatchWorker:
    """Takes up the batches of a store that nobody works on."""

    def __init__(self, store: BatchStore, models: ModelRouter, config: ServeConfig, keyring: Keyring | None):
        self.store = store
        self._models = models
        self._line_bytes = config.max_body_bytes
        self._tokens = max(2 * model.tokens_per_pass * model.max_replicas for model in config.all_models)
        self._accounts = {each.owner: each for each in keyring.clients} if keyring else {EVERYBODY: None}
        self._holder = uuid.uuid4().hex
        self._jobs: dict[str, _Job] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Works for as long as the application of a front end runs."""
        self._loop = asyncio.get_running_loop()
        keeper = threading.Thread(target=self._keep, name="batches", daemon=True)
        keeper.start()
        yield
        self._stopping = True
        self.wake()
        await asyncio.to_thread(keeper.join, _LOOK_S)

    def wake(self) -> None:
        """Look at the store now: there is a new batch, or one was cancelled."""
        self._wake.set()

    def _keep(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the store may answer the next time
                logger.warning("batches wait, their store failed: %s", error)
            self._wake.wait(_LOOK_S)
        for job in self._jobs.values():
            job.stop.set()
        for job in self._jobs.values():
            job.thread.join(_LONGEST_PAUSE_S)
            if (job.owner, job.name) in self.store.open_batches():
                self.store.lend(job.owner, job.name, "", 0)

    def _look(self) -> None:
        """Renew the leases of running jobs and start others; the keys take turns, oldest first."""
        for job in list(self._jobs.values()):
            if not job.thread.is_alive():
                del self._jobs[job.name]
            elif self.store.holder(job.owner, job.name) != self._holder:
                job.stop.set()
            else:
                self.store.lend(job.owner, job.name, self._holder, _LEASE_S)
                if self.store.is_cancelled(job.owner, job.name):
                    job.cancel.set()
        waiting = [
            (owner, name)
            for owner, name in self.store.open_batches()
            if owner in self._accounts and name not in self._jobs
        ]
        while waiting and len(self._jobs) < _AT_ONCE:
            running = [job.owner for job in self._jobs.values()]
            owner, name = min(waiting, key=lambda pair: running.count(pair[0]))
            waiting.remove((owner, name))
            if self.store.holder(owner, name) in ("", self._holder):
                self.store.lend(owner, name, self._holder, _LEASE_S)
                job = self._jobs[name] = _Job(owner, name)
                job.thread = threading.Thread(target=self._run, args=(job,), name=name, daemon=True)
                job.thread.start()

    def _run(self, job: _Job) -> None:
        try:
            self._work(job)
        except _Stopped:
            return
        except Exception:
            logger.exception("%s stops for some seconds", job.name)
            return
        self.wake()

    def _work(self, job: _Job) -> None:
        batch = self.store.batch(job.owner, job.name)
        if batch.status not in ENDED:
            try:
                file = self.store.file(job.owner, batch.input_file_id)
                with self.store.read(job.owner, file) as stream:
                    total = sum(1 for _ in numbered_lines(stream, self._line_bytes))
            except (ApiError, FileNotFoundError):
                return self._fail(job, "missing_file", "the input file is not there any more")
            if not total:
                return self._fail(job, "empty_file", "the input file has no lines")
            if total > MOST_LINES:
                message = f"the input file has {total} lines and a batch takes {MOST_LINES}; split it"
                return self._fail(job, "too_many_requests", message)
            batch.request_counts.total = total
            if batch.in_progress_at is None:
                batch.enter("in_progress")
                self.store.save(job.owner, batch)
            self._answer_lines(job, batch, file)
            self._finish(job)
        self.store.close(job.owner, job.name)

    def _fail(self, job: _Job, code: str, message: str) -> None:
        batch = self.store.batch(job.owner, job.name)
        batch.errors = BatchErrors(data=[BatchError(code=code, message=message, param="input_file_id")])
        batch.enter("failed")
        self.store.save(job.owner, batch)
        self.store.close(job.owner, job.name)

    def _answer_lines(self, job: _Job, batch: Batch, file: FileObject) -> None:
        """Store the parts that are missing."""
        with self.store.read(job.owner, file) as stream:
            for part, answers in groupby(self._answers(job, batch, stream), key=lambda answer: answer[0]):
                tally = [0, 0]

                def name(part: int = part, tally: list[int] = tally) -> str:
                    return f"parts/{batch.id}/{part:06d}-{tally[True]}-{tally[False]}"

                with self.store.folder.writing(name) as stored:
                    for _, succeeded, line in answers:
                        tally[succeeded] += 1
                        stored.write(b"+" if succeeded else b"-")
                        stored.write(line + b"\n")

    def _answers(self, job: _Job, batch: Batch, stream: BinaryIO) -> Iterator[tuple[int, bool, bytes]]:
        """Part, success and answer of each line, in order, with later lines asked ahead."""
        done, reader = self.store.parts(batch.id), LineReader()
        asked: deque[tuple[int, int, Future[tuple[bool, bytes]]]] = deque()
        held = 0
        try:
            for part, number, raw in numbered_lines(stream, self._line_bytes):
                line = reader.read(number, raw, self._line_bytes)
                if part in done:
                    continue
                tokens = len(raw or b"") // _CHARACTERS_A_TOKEN
                work = asyncio.run_coroutine_threadsafe(self._answer(job, batch, line), self._loop)
                asked.append((part, tokens, work))
                held += tokens
                while asked and (held > self._tokens or len(asked) > _LINES_ASKED or asked[0][2].done()):
                    part, tokens, work = asked.popleft()
                    held -= tokens
                    yield part, *self._result(job, work)
            for part, _, work in asked:
                yield part, *self._result(job, work)
        finally:
            for _, _, work in asked:
                work.cancel()

    def _result(self, job: _Job, work: "Future[tuple[bool, bytes]]") -> tuple[bool, bytes]:
        while not job.stop.is_set() and not self._stopping:
            with contextlib.suppress(TimeoutError):
                return work.result(1)
        raise _Stopped

    async def _answer(self, job: _Job, batch: Batch, line: ReadLine) -> tuple[bool, bytes]:
        """Whether a line succeeded, and its line of the output or the error file."""
        name = f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
        answer: EmbeddingRequest | Problem | BatchError | bytes = line.request
        if isinstance(answer, EmbeddingRequest):
            answer = await self._embed(job, batch, answer, name)
        response = error = None
        if isinstance(answer, BatchError):
            error = answer.model_dump(exclude_none=True)
        else:
            succeeded, status, body = (
                (False, answer.status, answer.response().body)
                if isinstance(answer, Problem)
                else (True, 200, answer)
            )
            response = {"status_code": status, "request_id": name, "body": orjson.Fragment(body)}
        content = {"id": name, "custom_id": line.custom_id, "response": response, "error": error}
        return response is not None and succeeded, orjson.dumps(content)

    async def _embed(
        self, job: _Job, batch: Batch, request: EmbeddingRequest, name: str
    ) -> bytes | Problem | BatchError:
        """The body of an answer, or why there is none; waits while the endpoint is full or not there."""
        account = self._accounts[job.owner]
        lost = 0
        while True:
            expired = time.time() > batch.expires_at
            if job.cancel.is_set() or expired:
                code = "batch_cancelled" if job.cancel.is_set() else "batch_expired"
                return BatchError(code=code, message=_ENDS[code])
            record = RequestRecord(name, client=account.name if account else "", account=account)
            try:
                return bytes((await embed(self._models, request, record, "bulk")).body)
            except ApiError as error:
                problem = error.problem
            except Exception as error:  # noqa: BLE001 - as a request gets 500, and the next one an answer
                logger.error("request failed: %s", type(error).__name__)
                return failed()
            lost += problem.status == 503
            if problem.status not in (429, 503) or lost == _LOST_REPLICAS:
                return problem
            await asyncio.sleep(min(problem.retry_after_s or 1, _LONGEST_PAUSE_S))
            if problem.status == 503:
                await self._until_ready(job)

    async def _until_ready(self, job: _Job) -> None:
        while not job.cancel.is_set():
            try:
                return await self._models.check_ready()
            except ApiError:
                await asyncio.sleep(_LONGEST_PAUSE_S)

    def _finish(self, job: _Job) -> None:
        """Make the output and the error file of the parts, and end the batch."""
        batch = self.store.batch(job.owner, job.name)
        counts = batch.request_counts
        if counts.completed + counts.failed != counts.total:
            raise _Stopped  # another process has ended it and deleted its parts
        if batch.status != "cancelling":
            batch.enter("finalizing")
            self.store.save(job.owner, batch)
        batch.output_file_id = self._join(job, "output", b"+") if counts.completed else None
        batch.error_file_id = self._join(job, "error", b"-") if counts.failed else None
        expired = time.time() > batch.expires_at
        batch.enter("cancelled" if batch.status == "cancelling" else "expired" if expired else "completed")
        self.store.save(job.owner, batch)
        logger.info(
            "%s is %s: %d requests answered, %d failed",
            batch.id,
            batch.status,
            counts.completed,
            counts.failed,
        )

    def _join(self, job: _Job, kind: str, mark: bytes) -> str:
        """Write the lines with a mark into a file of the owner; returns its name."""
        name = f"file-{job.name.removeprefix('batch_')}{mark.hex()[1:]}"
        size = 0
        with self.store.folder.writing(f"{job.owner}/files/{name}") as target:
            for _, part in sorted(self.store.parts(job.name).items()):
                with self.store.opened(part) as lines:
                    for line in lines:
                        if line.startswith(mark):
                            target.write(line[1:])
                            size += len(line) - 1
        file = FileObject(
            id=name,
            bytes=size,
            created_at=int(time.time()),
            filename=f"{job.name}_{kind}.jsonl",
            purpose="batch_output",
        )
        self.store.describe(job.owner, file)
        return name

"""Results on disk: <output>/<model label>/<checkpoint digest>/<Task>.json, in mteb's own format."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import mteb
from filelock import FileLock, Timeout
from mteb.results import TaskResult

from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_file, atomic_write
from rayembed.evaluation.instructions import Instructions

logger = logging.getLogger(__name__)

_DIGEST_CHARACTERS = 16
_LOCK = ".evaluation.lock"
_HOLDER = ".evaluation.holder.json"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible service.

    Attributes:
        url: base address, such as http://127.0.0.1:8000/v1.
        model: name of the served model.
    """

    url: str
    model: str


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation.

    Attributes:
        label: name of its column and folder, such as "trained".
        digest: names its weights; results of other weights are never reused.
        checkpoint: its folder; None for an endpoint and for BM25.
        endpoint: the service that answers for it.
    """

    label: str
    digest: str
    checkpoint: Path | None
    endpoint: Endpoint | None = None

    @property
    def encodes(self) -> bool:
        """Whether it makes vectors; BM25 does not."""
        return self.checkpoint is not None or self.endpoint is not None


class ResultStore:
    """One writer's view of the result files under `output`."""

    def __init__(self, output: Path):
        self.output = output

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder against a second evaluation, also of another machine; a dead holder holds nothing.

        Raises:
            ResourceError: another evaluation writes to the folder.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        holder = self.output / _HOLDER
        try:
            with FileLock(self.output / _LOCK, timeout=0):
                about = {
                    "host": socket.gethostname(),
                    "process": os.getpid(),
                    "since": time.strftime("%F %T"),
                }
                atomic_write(holder, json.dumps(about) + "\n")
                try:
                    yield
                finally:
                    holder.unlink(missing_ok=True)
        except Timeout:
            about = json.loads(holder.read_text()) if holder.is_file() else {}
            who = " ".join(f"{name} {value}" for name, value in about.items()) or "unknown"
            raise ResourceError(
                f"another evaluation is writing to {self.output} ({who}); wait for it, its results will be "
                "reused, or choose another --output"
            ) from None

    def path(self, candidate: Candidate, task: str) -> Path:
        """Where the result of `candidate` on `task` is kept."""
        return self.output / candidate.label / candidate.digest[:_DIGEST_CHARACTERS] / f"{task}.json"

    def load(
        self,
        candidate: Candidate,
        task: mteb.AbsTask,
        instructions: Instructions | None = None,
        precision: str = "auto",
    ) -> TaskResult | None:
        """A stored result of the same rows and instructions; None where the task has to be run (again)."""
        path = self.path(candidate, task.metadata.name)
        if not path.is_file():
            return None
        try:
            result = TaskResult.from_disk(path, load_historic_data=False)
        except ValueError:
            logger.warning("%s is not a complete result; the task is run again", path)
            return None
        if result.dataset_revision != task.metadata.revision or result.get_missing_evaluations(task):
            logger.info("%s is of another revision of the task; the task is run again", path)
            return None
        if instructions is not None and _recorded(result) != [(asdict(instructions), precision)]:
            logger.info("%s was made with other instructions or precision; the task is run again", path)
            return None
        return result

    def save(self, candidate: Candidate, result: TaskResult) -> None:
        """Write `result` so that a reader never sees a part of it."""
        with atomic_file(self.path(candidate, result.task_name)) as temporary:
            result.to_disk(temporary)


def _recorded(result: TaskResult) -> list[tuple[dict[str, Any], str]]:
    """The distinct instructions and precisions of a result's entries."""
    entries = [cast(dict[str, Any], entry) for entries in result.scores.values() for entry in entries]
    found: list[tuple[dict[str, Any], str]] = []
    for entry in entries:
        if (used := (entry.get("instructions", {}), entry.get("precision", ""))) not in found:
            found.append(used)
    return found

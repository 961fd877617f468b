"""Results on disk.

<output>/results/rayembed__LABEL/DIGEST/Task.json    mteb's own, with model_meta.json and run_settings.jsonl:
                                                     `mteb.ResultCache(OUTPUT)` lists and loads them
<output>/LABEL/DIGEST/Task.details.json              ours: instructions, precision, scores of queries or rows
<output>/LABEL/record.json                           what a comparison of two models needs
"""

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import mteb
from filelock import FileLock, Timeout
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import atomic_write, fetch, push, remove
from rayembed.common.settings import Precision
from rayembed.evaluation.builtin_tasks import TASKS
from rayembed.evaluation.encoder import ENCODE_OPTIONS, OURS
from rayembed.evaluation.endpoint import Endpoint
from rayembed.evaluation.instructions import Instructions

logger = logging.getLogger(__name__)

_DIGEST_CHARACTERS = 16
_LOCK = ".evaluation.lock"
_HOLDER = ".evaluation.holder.json"


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
                    remove(holder)
        except Timeout:
            about = json.loads(holder.read_text()) if holder.is_file() else {}
            who = " ".join(f"{name} {value}" for name, value in about.items()) or "unknown"
            raise ResourceError(
                f"another evaluation is writing to {self.output} ({who}); wait for it, its results will be "
                "reused, or choose another --output"
            ) from None

    def path(self, candidate: Candidate, task: str) -> Path:
        """Where mteb's result of `candidate` on `task` is kept."""
        return mteb.ResultCache(self.output).get_task_result_path(task, model_meta(candidate))

    def details_path(self, candidate: Candidate, task: str) -> Path:
        """Where our part of that result is kept."""
        folder = self.output / candidate.label / candidate.digest[:_DIGEST_CHARACTERS]
        return folder / f"{task}.details.json"

    def load(
        self,
        candidate: Candidate,
        task: mteb.AbsTask,
        instructions: Instructions | None = None,
        precision: Precision = "auto",
    ) -> TaskResult | None:
        """A stored result of the same rows and instructions; None where the task has to be run (again).

        `auto` takes a result in any number format; which one it was is in the record.
        """
        path, details = (
            fetch(place(candidate, task.metadata.name)) for place in (self.path, self.details_path)
        )
        if not (path.is_file() and details.is_file()):
            return None
        try:
            result = TaskResult.from_disk(path, load_historic_data=False)
            ours = json.loads(details.read_text())
            for split, entries in result.scores.items():
                for entry, own in zip(cast(list[dict[str, Any]], entries), ours[split], strict=True):
                    entry[OURS] = own
        except (ValueError, KeyError):
            logger.warning("%s is not a complete result; the task is run again", path)
            return None
        if result.dataset_revision != task.metadata.revision or result.get_missing_evaluations(task):
            logger.info("%s is of another revision of the task; the task is run again", path)
            return None
        if instructions is not None and not _made_so(result, instructions, precision):
            logger.info("%s was made with other instructions or precision; the task is run again", path)
            return None
        return result

    def save(self, candidate: Candidate, result: TaskResult) -> None:
        """Write mteb's files as mteb does, and our part next to the model's record.

        A run that is cut off in between leaves no mteb result, and the task is run again.
        """
        plain = result.model_copy(deep=True)
        ours: dict[str, list[dict[str, Any]]] = {}
        for split, entries in plain.scores.items():
            ours[split] = [entry.pop(OURS, {}) for entry in cast(list[dict[str, Any]], entries)]
        path = self.path(candidate, result.task_name)
        remove(path)
        atomic_write(self.details_path(candidate, result.task_name), json.dumps(ours) + "\n")
        mteb.ResultCache(self.output).save_to_cache(
            plain, model_meta(candidate), encode_kwargs=ENCODE_OPTIONS
        )
        push(path.parent)


def model_meta(candidate: Candidate) -> ModelMeta:
    """What mteb's files say of a model; its name and revision are their folders."""
    return ModelMeta.create_empty(
        overwrites={
            "name": f"rayembed/{candidate.label}",
            "revision": candidate.digest,
            "similarity_fn_name": ScoringFunction.COSINE if candidate.encodes else None,
            "modalities": ["text"],
            "use_instructions": candidate.encodes,
        }
    )


def _made_so(result: TaskResult, instructions: Instructions, precision: Precision) -> bool:
    entries = [_ours(entry) for entries in result.scores.values() for entry in entries]
    return all(
        entry.get("instructions") == asdict(instructions)
        # A service has no precision that we set.
        and (precision == "auto" or entry.get("precision") in (precision, None))
        for entry in entries
    )


def _ours(entry: Any) -> dict[str, Any]:
    return entry.get(OURS) or {}


RECORD_FILE = "record.json"


@dataclass(frozen=True)
class TaskRecord:
    """One model on one task.

    Attributes:
        name, type, metric: of mteb.
        score: main score.
        samples: what the score is the mean of, by name (query id or number of the test row), as `samples.py`
            says; empty where it has none, and where there are several subsets.
        instructions: per side, and who chose them.
        revision: of the rows.
        overlap: what the training data had of the task.
    """

    name: str
    type: str
    metric: str
    score: float
    samples: dict[str, float]
    instructions: dict[str, Any] | None
    revision: str
    overlap: str | None


@dataclass(frozen=True)
class ModelRecord:
    """One evaluated model.

    Attributes:
        label: name of the model in this evaluation.
        digest: of its weights.
        benchmark: full name with version; None for single tasks.
        tasks: in the order of the benchmark.
        versions: of the packages that decide the numbers.
    """

    label: str
    digest: str
    benchmark: str | None
    tasks: tuple[TaskRecord, ...]
    versions: dict[str, str]

    def categories(self) -> dict[str, float]:
        """Mean score of each task type, and of all tasks under "mean"."""
        groups: dict[str, list[float]] = {}
        for task in self.tasks:
            groups.setdefault(task.type, []).append(task.score)
        means = {kind: sum(scores) / len(scores) for kind, scores in groups.items()}
        return means | {"mean": sum(task.score for task in self.tasks) / len(self.tasks)}


def task_record(result: TaskResult, *, type: str, metric: str, overlap: str | None) -> TaskRecord:
    """What a result says of one task."""
    entries: list[Mapping[str, Any]] = [entry for entries in result.scores.values() for entry in entries]
    return TaskRecord(
        result.task_name,
        type,
        metric,
        result.get_score(),
        dict(_ours(entries[0]).get("samples") or {}) if len(entries) == 1 else {},
        _ours(entries[0]).get("instructions"),
        str(result.dataset_revision),
        overlap,
    )


def write_record(record: ModelRecord, output: Path) -> Path:
    """Write record.json into the model's folder under `output` and return the folder."""
    folder = output / record.label
    atomic_write(folder / RECORD_FILE, json.dumps(asdict(record), indent=2) + "\n")
    return folder


def read_record(folder: Path) -> ModelRecord:
    """The record in a model's folder of results.

    Raises:
        DataError: there is none, or it is not one.
    """
    path = fetch(folder / RECORD_FILE)
    if not path.is_file():
        raise DataError(
            f"{folder} has no {RECORD_FILE}; name a folder such as results/trained that an evaluation wrote"
        )
    try:
        content = json.loads(path.read_text())
        tasks = tuple(TaskRecord(**task) for task in content.pop("tasks"))
        return ModelRecord(tasks=tasks, **content)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not the record of an evaluation ({error}); run the evaluation again"
        ) from error


def trained_sources(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a checkpoint was trained on, of mined rows their source; None where its manifest does not say."""
    sources = manifest.get("provenance", {}).get("sources")
    return None if sources is None else tuple(sources)


def overlap_note(task: TaskMetadata, sources: Iterable[str] | None) -> str | None:
    """Whether a training source belongs to `task`; None where none does.

    Args:
        task: the evaluated task.
        sources: names of the training sources; None where they are not known.
    """
    if sources is None:
        return "training data not recorded"
    if task.name in TASKS:
        source = TASKS[task.name].source
        return f"trained on the other splits of {source}" if source in sources else None
    names = {_folded(task.name), _folded(str(task.dataset["path"]).split("/")[-1])}
    if alike := [source for source in sources if any(_folded(source) in name for name in names)]:
        return f"trained on a source named {alike[0]}"
    return None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

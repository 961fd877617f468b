"""record.json: one evaluated model with everything that a comparison or a report needs, in
<output>/<model>/."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mteb.results import TaskResult

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write

RECORD_FILE = "record.json"


@dataclass(frozen=True)
class TaskRecord:
    """One model on one task.

    Attributes:
        name, type, metric: of mteb.
        score: main score.
        samples: what the score is the mean of, by name (query id or number of the draw); empty where mteb
        tells the score alone.
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
        _samples(entries, metric),
        entries[0].get("instructions"),
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
    path = folder / RECORD_FILE
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


def _samples(entries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The values that the main score is the mean of, where a result of one subset keeps them."""
    if len(entries) != 1:
        return {}
    entry = entries[0]
    if "per_query" in entry:
        return dict(entry["per_query"])
    if metric == "v_measure":
        draws = entry.get("v_measures") or []
        draws = [value for values in draws.values() for value in values] if isinstance(draws, dict) else draws
    else:
        draws = [draw[metric] for draw in entry.get("scores_per_experiment") or [] if metric in draw]
    return {str(number): float(value) for number, value in enumerate(draws)}

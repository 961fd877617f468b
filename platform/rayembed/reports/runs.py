"""Runs as their folders tell of them: how far they are, what they cost, how good they are."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pyarrow import fs

from rayembed.common.errors import DataError
from rayembed.common.paths import fetch, location_of, resolve
from rayembed.common.progress import duration
from rayembed.common.stores import listed, open_location, patiently
from rayembed.reports.metrics import read_metrics
from rayembed.reports.page import aligned
from rayembed.reports.run_report import SUMMARY_FILE
from rayembed.training.run_folder import METRICS_FILE, RECIPE_FILE, VALIDATION_FILE, is_trained_now, read_note

logger = logging.getLogger(__name__)

Status = Literal["finished", "failed", "running", "stopped"]

_SCORES_FILES = (SUMMARY_FILE, "results/scores.json")


@dataclass(frozen=True)
class Score:
    """A mean score, and what was scored on which tasks."""

    value: float
    of: str


@dataclass(frozen=True)
class Run:
    """A run folder; what is in its files is read when it is asked for.

    Attributes:
        folder: the run folder.
        recipe: its resolved recipe, as plain values, so that those of other versions can be read.
    """

    folder: Path
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.recipe["name"])

    @property
    def stages(self) -> list[str]:
        """Names of the stages."""
        return [stage["name"] for stage in self.recipe["stages"]]

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage["steps"] for stage in self.recipe["stages"])

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Training steps that were logged."""
        path = fetch(self.folder / METRICS_FILE)
        return read_metrics(path) if path.is_file() else []

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """Scored checkpoints, in order of their steps."""
        path = fetch(self.folder / VALIDATION_FILE)
        return sorted(read_metrics(path), key=lambda record: record["step"]) if path.is_file() else []

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores of the finished model by task; empty where it was not evaluated."""
        for name in _SCORES_FILES:
            path = fetch(self.folder / name)
            if path.is_file():
                rows: Mapping[str, Any] = json.loads(path.read_text()).get("tasks", {})
                return {task: row["trained"] for task, row in rows.items() if row["trained"] is not None}
        return {}

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.records[-1]["step"] + 1 if self.records else 0

    @property
    def tokens(self) -> int:
        """Tokens trained on, those of steps that were not logged estimated from the others."""
        return round(self._total("tokens"))

    @property
    def seconds(self) -> float:
        """Wall time of the steps taken; what lies between them, such as checkpoints, is not counted."""
        return self._total("seconds")

    def _total(self, field: str) -> float:
        if not self.records:
            return 0.0
        return sum(record[field] for record in self.records) / len(self.records) * self.step

    @cached_property
    def note(self) -> dict[str, Any]:
        """When the run began and ended, and its error, as far as it was noted."""
        return read_note(self.folder)

    @property
    def status(self) -> Status:
        """What became of the run; one that was killed counts as running for a minute."""
        if fetch(self.folder / "model" / RECIPE_FILE).is_file():
            return "finished"
        if self.note.get("error"):
            return "failed"
        return "running" if is_trained_now(self.folder) else "stopped"

    @property
    def started(self) -> str:
        """Date and time of the first attempt, in UTC."""
        if started := self.note.get("started"):
            return started
        written = fetch(self.folder / RECIPE_FILE).stat().st_mtime
        return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")

    @property
    def best_checkpoint(self) -> dict[str, Any] | None:
        """Record of the checkpoint with the highest score."""
        return max(self.validations, key=lambda record: record["score"], default=None)

    @property
    def best(self) -> Score | None:
        """Mean score of the finished model, else that of the best scored checkpoint."""
        if self.scores:
            value = sum(self.scores.values()) / len(self.scores)
            return Score(value, f"model, mean of {len(self.scores)} tasks")
        best = self.best_checkpoint
        if best is None:
            return None
        return Score(best["score"], f"checkpoint of step {best['step']}, {', '.join(best['scores'])}")

    def as_record(self) -> dict[str, Any]:
        """Everything a listing shows, for programs."""
        best = self.best
        return {
            "name": self.name,
            "folder": location_of(self.folder),
            "status": self.status,
            "error": self.note.get("error"),
            "stages": self.stages,
            "step": self.step,
            "steps": self.steps,
            "score": best.value if best else None,
            "score_of": best.of if best else None,
            "best_checkpoint": self.best_checkpoint,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "workers": self.recipe.get("training", {}).get("workers", 1),
            "started": self.started,
        }


def find_runs(folder: Path) -> list[Run]:
    """Runs in and below a folder, the one that started last first.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    runs = []
    for path in _run_folders(folder):
        try:
            runs.append(Run(path, _recipe(path)))
        except DataError as error:
            logger.warning("left out: %s", error)
    if not runs:
        raise DataError(
            f"{location_of(folder)} holds no run; name the folder that `output` of the recipes names"
        )
    return sorted(runs, key=lambda run: run.started, reverse=True)


def open_run(name: str, folder: Path) -> Run:
    """The run of a name below `folder`, or that in the folder `name`.

    Raises:
        DataError: there is none, or it has not logged a step.
    """
    paths = [folder / name, resolve(name), Path(name).expanduser().absolute()]
    found = next((path for path in paths if fetch(path / RECIPE_FILE).is_file()), None)
    if found is None:
        known = ", ".join(sorted(str(path.relative_to(folder)) for path in _run_folders(folder)))
        raise DataError(f"there is no run {name!r} in {location_of(folder)}; it has {known or 'none'}")
    run = Run(found, _recipe(found))
    if not run.records:
        raise DataError(f"run {name!r} has no step in {METRICS_FILE}; wait for its first one or leave it out")
    return run


def format_runs(runs: Sequence[Run]) -> str:
    """A table of runs as aligned text."""
    rows = [["run", "status", "stages", "score", "tokens", "time", "started (UTC)"]]
    for run in runs:
        status = run.status if run.status == "finished" else f"{run.status}, step {run.step} of {run.steps}"
        rows.append(
            [
                run.name,
                f"{status} ({run.steps} steps)" if run.status == "finished" else status,
                " > ".join(run.stages),
                f"{run.best.value:.3f}" if run.best else "-",
                f"{run.tokens:,}",
                duration(run.seconds),
                run.started[:16].replace("T", " "),
            ]
        )
    return aligned(rows)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a recipe; what is inside a run is not searched."""
    filesystem, root = open_location(folder)

    def search(path: str) -> Iterator[Path]:
        found = patiently(folder, lambda: listed(filesystem, path))
        if any(info.base_name == RECIPE_FILE for info in found):
            yield folder / path.removeprefix(root).strip("/")
            return
        for info in found:
            if info.type == fs.FileType.Directory:
                yield from search(info.path)

    yield from search(root)


def _recipe(folder: Path) -> dict[str, Any]:
    path = fetch(folder / RECIPE_FILE)
    try:
        recipe = yaml.safe_load(path.read_text())
        if recipe["name"] and all(stage["steps"] and stage["name"] for stage in recipe["stages"]):
            return recipe
    except (yaml.YAMLError, KeyError, TypeError):
        pass
    raise DataError(f"{location_of(path)} is not the recipe of a training run; remove or move its folder")

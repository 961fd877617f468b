"""What of a task's domain was in the training data: a note beside the score, for the reader to weigh."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mteb
import yaml
from mteb.abstasks.task_metadata import TaskMetadata

from rayembed.evaluation.tasks import TASKS


def trained_sources(checkpoint: Path) -> tuple[str, ...] | None:
    """Sources of all stages of the recipe in a checkpoint folder; None where it has no recipe."""
    path = checkpoint / "recipe.yaml"
    if not path.is_file():
        return None
    recipe = yaml.safe_load(path.read_text()) or {}
    stages: list[dict[str, Any]] = recipe.get("stages") or []
    names = [str(entry["source"]) for stage in stages for entry in stage.get("blend") or []]
    return tuple(dict.fromkeys(names))


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


def published_overlap(model: str, task: str) -> str | None:
    """The same note for a published model, from the training data that its entry in mteb declares."""
    declared = mteb.get_model_meta(model).training_datasets
    return "training split seen" if declared and task in declared else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

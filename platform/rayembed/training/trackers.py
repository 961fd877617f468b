"""Metrics to experiment trackers, through their own libraries.

Where they send them is set in the libraries' own way: MLFLOW_TRACKING_URI, WANDB_MODE, WANDB_API_KEY.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rayembed.common.errors import ResourceError
from rayembed.config.training import TrackerName


class Tracker(Protocol):
    """One experiment tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step."""

    def close(self) -> None:
        """Send what is left."""


class _MLflow:
    def __init__(self, library: ModuleType, run_folder: Path, settings: Mapping[str, Any]):
        self._library = library
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # MLflow asks for consent to its plain files, which need no server and no database package.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            library.set_tracking_uri((run_folder / "mlflow").absolute().as_uri())
        library.set_experiment("rayembed")
        found = library.search_runs(filter_string=f"run_name = '{settings['name']}'", output_format="list")
        library.start_run(
            run_id=found[0].info.run_id if found else None, run_name=None if found else settings["name"]
        )
        if not found:
            library.log_params({key: str(value)[:500] for key, value in _flat(settings).items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._library.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._library.end_run()


class _WeightsAndBiases:
    def __init__(self, library: ModuleType, run_folder: Path, settings: Mapping[str, Any]):
        mode = None if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") else "offline"
        self._run = library.init(
            project="rayembed",
            name=settings["name"],
            dir=run_folder,
            config=dict(settings),
            mode=mode,
            resume="allow",
            id=settings["name"].replace(".", "-"),
        )
        # Its own count of steps only rises, and scores of a checkpoint come after later steps.
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[TrackerName, tuple[str, Callable[[ModuleType, Path, Mapping[str, Any]], Tracker]]] = {
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _WeightsAndBiases),
}


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """Refuse trackers whose library is not installed.

    Raises:
        ResourceError: the library, and how to install it.
    """
    for name in names:
        _library(name)


def start_trackers(
    names: tuple[TrackerName, ...], run_folder: Path, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open or continue the run in each tracker; called by one process at a time.

    Args:
        names: which trackers.
        run_folder: where those that work offline keep their files.
        settings: the resolved recipe.
    """
    return [_TRACKERS[name][1](_library(name), run_folder, settings) for name in names]


def _library(name: TrackerName) -> ModuleType:
    module = _TRACKERS[name][0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"training.trackers has {name} and the package {module} is not installed; run "
            "`pip install 'rayembed[trackers]'` or remove it"
        ) from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

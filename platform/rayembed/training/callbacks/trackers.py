"""Where the numbers of a run go besides its own files: Ray's metrics, MLflow, Weights & Biases.

Where the last two send them is set in their own way: MLFLOW_TRACKING_URI, WANDB_MODE, WANDB_API_KEY.
"""

import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import yaml
from ray.util.metrics import Gauge
from torch.utils.tensorboard import SummaryWriter

from rayembed.common.errors import ResourceError, all_mistakes
from rayembed.common.paths import push
from rayembed.config.training import TrackerName

_NAMES = re.compile(r"(?P<group>train|phase|source)/(?:(?P<source>.+)/)?(?P<measure>\w+)")


class Tracker(Protocol):
    """One experiment tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Event files in the run folder; made on rank 0 only."""

    def __init__(self, run_folder: Path, first_step: int):
        """Events of `first_step` and later, which an earlier attempt may have left, are hidden."""
        self._folder = run_folder / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One event for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def push(self) -> None:
        """Bring the events so far to the store of the run folder, if it is in one."""
        self._writer.flush()
        push(self._folder)

    def close(self) -> None:
        """Write out the last events."""
        self._writer.close()


class RayMetrics:
    """The latest numbers of a stage, which every node offers to Prometheus; made on rank 0 only, inside Ray.

    `deploy/grafana/training.json` draws them. Ray puts `ray_` in front of each name.

    Gauges, with the tags `run` and `stage`:
        rayembed_train_step                 steps taken through all stages
        rayembed_train_MEASURE              of the whole batch, such as `loss` or `tokens_per_second`
        rayembed_train_phase_seconds        with the tag `phase`
        rayembed_train_source_MEASURE       with the tag `source`
    """

    def __init__(self, run: str, stage: str):
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Gauge] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Set the gauges to the numbers of a step, named as `StepMetrics.scalars` names them."""
        self._set("step", step + 1)
        for name, value in values.items():
            match = _NAMES.fullmatch(name)
            assert match is not None, f"{name} is no name of a metric"
            group, source, measure = match["group"], match["source"], match["measure"]
            if group == "phase":
                self._set("phase_seconds", value, phase=measure)
            elif group == "source":
                self._set(f"source_{measure}", value, source=source)
            else:
                self._set(measure, value)

    def close(self) -> None:
        """The gauges end with their process."""

    def _set(self, name: str, value: float, **tags: str) -> None:
        tags = self._tags | tags
        if name not in self._gauges:
            description = f"{name.replace('_', ' ')} of the last training step"
            self._gauges[name] = Gauge(f"rayembed_train_{name}", description, tuple(tags))
        self._gauges[name].set(float(value), tags)


class _MLflow:
    def __init__(self, library: ModuleType, run_folder: Path, settings: Mapping[str, Any]):
        self._library = library
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # MLflow asks for consent to its plain files, which need no server and no database package.
            importlib.import_module("mlflow.environment_variables").MLFLOW_ALLOW_FILE_STORE.set(True)
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
        ResourceError: the libraries, and how to install them.
    """
    mistakes = []
    for name in names:
        try:
            _library(name)
        except ResourceError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ResourceError(all_mistakes("training.trackers", mistakes))


def start_trackers(names: tuple[TrackerName, ...], run_folder: Path, recipe: str) -> list[Tracker]:
    """Open or continue the run in each tracker; called by one process at a time.

    Args:
        names: which trackers.
        run_folder: where those that work offline keep their files.
        recipe: the resolved recipe as YAML, which they note down.
    """
    settings = yaml.safe_load(recipe) if names else {}
    return [_TRACKERS[name][1](_library(name), run_folder, settings) for name in names]


def _library(name: TrackerName) -> ModuleType:
    module = _TRACKERS[name][0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"tracker {name}: the package {module} is not installed; run "
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

"""What is stored to continue a stage, and where: weights, Adam moments, and the cursor into the plan.

Files of a checkpoint folder, all written by rank 0:
    trainable.safetensors    fp32 master weights of the adapters and the pooling head
    moments.safetensors      Adam moments, named "moment.parameter"
    state.json               stage, next step, the SHA-256 of the two files above and one of its own content

`state.json` is written last, so that a folder without one was not written to its end.

A checkpoint counts when it is complete and its digests are right, whoever else knows of it: Ray Train's own
list may be torn, or may lack a checkpoint that was written just before the end. How long one is kept is up to
Ray Train.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ray.train
import torch
from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem, copy_files
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayembed.common.errors import CheckpointError, ConfigError, DataError, ResourceError
from rayembed.common.paths import atomic_write, fetch, file_digest, here
from rayembed.common.ray_compat import checkpoint_list_file
from rayembed.common.stores import listed, open_location
from rayembed.training.run_folder import RECIPE_FILE, check_recipe

WEIGHTS_FILE = "trainable.safetensors"
MOMENTS_FILE = "moments.safetensors"
STATE_FILE = "state.json"
FOLDER = "ray-train"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """A stage between two steps.

    Attributes:
        stage: name of the stage.
        next_step: first step of the plan that has not been taken.
        optimizer_steps: steps that the optimizer took; fewer than `next_step` when batches were skipped.
        weights: fp32 trainable weights by parameter name.
        moments: Adam moments by "moment.parameter name".
    """

    stage: str
    next_step: int
    optimizer_steps: int
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write the files of a checkpoint folder.

    Raises:
        OSError: the disk is full or fails.
    """
    for name, tensors in ((WEIGHTS_FILE, state.weights), (MOMENTS_FILE, state.moments)):
        try:
            save_file(tensors, folder / name)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    digests = {name: file_digest(folder / name) for name in (WEIGHTS_FILE, MOMENTS_FILE)}
    content = {
        "stage": state.stage,
        "next_step": state.next_step,
        "optimizer_steps": state.optimizer_steps,
        "sha256": digests,
    }
    content["state_sha256"] = _content_digest(content)
    atomic_write(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def load_training_state(folder: Path) -> TrainingState:
    """Read a checkpoint folder and compare its digests.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder, state = here(folder), check_training_state(folder)
    return TrainingState(
        stage=state["stage"],
        next_step=state["next_step"],
        optimizer_steps=state["optimizer_steps"],
        weights=load_file(folder / WEIGHTS_FILE),
        moments=load_file(folder / MOMENTS_FILE),
    )


def check_training_state(folder: Path) -> dict[str, Any]:
    """Compare the digests of a checkpoint folder; returns the content of its `state.json`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = fetch(folder)
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"training checkpoint {folder} has no {STATE_FILE}, so it was not written to its end; remove it "
            "and run the same command again"
        )
    try:
        state = json.loads(path.read_text())
        digest = state.pop("state_sha256")
    except (ValueError, KeyError, AttributeError):
        state, digest = {}, ""
    if _content_digest(state) != digest:
        raise _damaged(path)
    for name, expected in state["sha256"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != expected:
            raise _damaged(folder / name)
    return state


def next_step(folder: Path) -> int:
    """First step of the plan that a checkpoint has not taken."""
    return json.loads(fetch(folder / STATE_FILE).read_text())["next_step"]


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trainable weights alone, to start the next stage or to export.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = here(folder)
    check_training_state(folder)
    return load_file(folder / WEIGHTS_FILE)


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"training checkpoint file {path} is damaged; remove {path.parent} and run the same command again"
    )


@dataclass(frozen=True)
class CheckpointStore:
    """A folder of checkpoints on any filesystem that pyarrow has.

    Attributes:
        filesystem: where.
        path: of the folder; the checkpoints are the folders `step-...` in it.
    """

    filesystem: FileSystem
    path: str

    @classmethod
    def of_worker(cls) -> "CheckpointStore":
        """The store of the stage that this Ray Train worker trains."""
        storage = ray.train.get_context().get_storage()
        return cls(storage.storage_filesystem, storage.experiment_fs_path)

    def checkpoint(self, name: str) -> ray.train.Checkpoint:
        """The checkpoint of this name as Ray Train handles it."""
        return ray.train.Checkpoint(f"{self.path}/{name}", self.filesystem)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return self.filesystem.get_file_info(f"{self.path}/{name}").type != FileType.NotFound

    def names(self) -> list[str]:
        """Names of the checkpoint folders, complete or not, the newest first."""
        found = listed(self.filesystem, self.path)
        names = [info.base_name for info in found if info.type == FileType.Directory]
        return sorted((name for name in names if name.startswith("step-")), reverse=True)

    def newest_step(self) -> int:
        """Step at which training goes on where the newest complete checkpoint is not damaged."""
        names = (name for name in self.names() if self.exists(f"{name}/{STATE_FILE}"))
        return int(next(names, "step-0").split("-")[1])

    def new_name(self, next_step: int) -> str:
        """Name for a checkpoint; a folder that an earlier attempt left is never written again."""
        name = f"step-{next_step:07d}"
        attempts = (f"{name}-{attempt}" for attempt in range(1, 10_000))
        return next(candidate for candidate in (name, *attempts) if not self.exists(candidate))

    def write(self, name: str, state: TrainingState) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full or fails, or the store does not answer.
        """
        path = f"{self.path}/{name}"
        self.filesystem.create_dir(path)
        if isinstance(self.filesystem, LocalFileSystem):
            write_training_state(Path(path), state)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_training_state(Path(folder), state)
            copy_files(folder, path, destination_filesystem=self.filesystem)

    def clear(self, name: str) -> bool:
        """Leave an empty folder in place of a checkpoint; returns whether that could be done."""
        path = f"{self.path}/{name}"
        with contextlib.suppress(OSError):
            self.filesystem.delete_dir(path)
        try:
            self.filesystem.create_dir(path)
        except OSError:
            return False
        return True

    def mend(self) -> None:
        """Set Ray Train's list of checkpoints aside when it is damaged or names missing ones.

        Ray Train refuses to start with such a list. Called on the driver, before it does.
        """
        path = f"{self.path}/{checkpoint_list_file()}"
        if not self.exists(checkpoint_list_file()):
            return
        with self.filesystem.open_input_stream(path) as stream:
            content = stream.read()
        try:
            listed = [result["checkpoint_dir_name"] for result in json.loads(content)["checkpoint_results"]]
        except (ValueError, KeyError, TypeError):
            problem = "is damaged"
        else:
            missing = [name for name in listed if not self.exists(name)]
            if not missing:
                return
            problem = f"names {missing[0]}, which is missing"
        logger.warning("%s %s; it is set aside and the checkpoints themselves are read", path, problem)
        self.filesystem.move(path, f"{path}.damaged")


def open_store(location: str | None, *, run_name: str, recipe: str, stage_folder: Path) -> CheckpointStore:
    """The store of a stage, empty or of an earlier attempt; called on the driver.

    Args:
        location: `training.checkpoint_storage`; None: in the run folder.
        run_name: a folder below the location.
        recipe: the resolved recipe, left next to the checkpoints.
        stage_folder: of the stage in the run folder.

    Raises:
        ConfigError: the location is none, or has checkpoints of another recipe.
        ResourceError: it cannot be written.
    """
    if location is None:
        store = CheckpointStore(*open_location(stage_folder / FOLDER))
    else:
        try:
            filesystem, path = open_location(location)
        except DataError as error:
            raise ConfigError(f"training.checkpoint_storage: {error}") from error
        run_path = PurePosixPath(path) / run_name
        try:
            filesystem.create_dir(str(run_path))
            _claim(filesystem, str(run_path), recipe)
        except (OSError, ArrowException) as error:
            raise ResourceError(
                f"training.checkpoint_storage {location} cannot be used ({str(error).splitlines()[0]}); "
                "check the address, the credentials of all nodes and the free space"
            ) from error
        store = CheckpointStore(filesystem, str(run_path / stage_folder.name / FOLDER))
    return store


def _claim(filesystem: FileSystem, path: str, recipe: str) -> None:
    """Leave the recipe next to the checkpoints, or compare with the one that is there."""
    file = f"{path}/{RECIPE_FILE}"
    if filesystem.get_file_info(file).type != FileType.NotFound:
        with filesystem.open_input_stream(file) as stream:
            check_recipe(
                stream.read().decode(), recipe, f"{path} of training.checkpoint_storage has checkpoints of"
            )
    with filesystem.open_output_stream(file) as stream:
        stream.write(recipe.encode())

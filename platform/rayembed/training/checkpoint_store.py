"""Where the checkpoints of a stage are kept, and which of them training continues from.

A checkpoint counts when it is complete and its digests are right, whoever else knows of it: Ray Train's own
list may be torn, or may lack a checkpoint that was written just before the end. How long one is kept is up to
Ray Train.
"""

import contextlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import ray.train
import yaml
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from rayembed.common.errors import CheckpointError, ConfigError, DataError, ResourceError
from rayembed.common.ray_compat import checkpoint_list_file
from rayembed.config import RunConfig
from rayembed.records.locations import open_location
from rayembed.training.checkpointing import (
    STATE_FILE,
    TrainingState,
    load_training_state,
    write_training_state,
)
from rayembed.training.run_folder import RECIPE_FILE, first_difference
from rayembed.training.stage_run import StageRun
from rayembed.training.validation import requested_validation

FOLDER = "ray-train"
SCORE = "score_of_keeping"
"""Metric of a report by which Ray Train keeps checkpoints: the step, so that the newest are kept."""

logger = logging.getLogger(__name__)


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
        selector = FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        names = [info.base_name for info in found if info.type == FileType.Directory]
        return sorted((name for name in names if name.startswith("step-")), reverse=True)

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


def store_of_stage(config: RunConfig, stage_folder: Path) -> CheckpointStore:
    """The store of a stage, empty or of an earlier attempt; called on the driver.

    Raises:
        ConfigError: `training.checkpoint_storage` is no location, or has checkpoints of another recipe.
        ResourceError: it cannot be written.
    """
    location = config.training.checkpoint_storage
    if location is None:
        store = CheckpointStore(LocalFileSystem(), str(stage_folder / FOLDER))
    else:
        try:
            filesystem, path = open_location(location)
        except DataError as error:
            raise ConfigError(f"training.checkpoint_storage: {error}") from error
        run_path = PurePosixPath(path) / config.name
        try:
            filesystem.create_dir(str(run_path))
            _claim(filesystem, str(run_path), config)
        except (OSError, ArrowException) as error:
            raise ResourceError(
                f"training.checkpoint_storage {location} cannot be used ({str(error).splitlines()[0]}); "
                "check the address, the credentials of all nodes and the free space"
            ) from error
        store = CheckpointStore(filesystem, str(run_path / stage_folder.name / FOLDER))
    store.mend()
    return store


def _claim(filesystem: FileSystem, path: str, config: RunConfig) -> None:
    """Leave the recipe beside the checkpoints, or compare with the one that is there."""
    recipe = f"{path}/{RECIPE_FILE}"
    if filesystem.get_file_info(recipe).type != FileType.NotFound:
        with filesystem.open_input_stream(recipe) as stream:
            before = yaml.safe_load(stream.read())
        difference = first_difference(before, config.model_dump(mode="json"))
        if difference:
            raise ConfigError(
                f"{path} of training.checkpoint_storage has checkpoints of another recipe ({difference}); "
                "set name to start another run, or remove them"
            )
    with filesystem.open_output_stream(recipe) as stream:
        stream.write(config.to_yaml().encode())


def last_good_state(run: StageRun) -> TrainingState | None:
    """State of the newest checkpoint that is complete and undamaged; None when there is none.

    The first rank decides and tells the others. Called by all ranks, before anything is reported.

    Raises:
        CheckpointError: another rank does not read what the first one read.
    """
    store = CheckpointStore.of_worker()
    rank = ray.train.get_context().get_world_rank()
    name, state = _newest_good(store, run.stage.name) if rank == 0 else (None, None)
    reported = _reported_names() if rank == 0 else set()
    name, known = broadcast_from_rank_zero((name, name in reported))
    if name is None:
        return None
    if rank == 0:
        _remove_leftovers(store, keep={name, *reported})
    else:
        with store.checkpoint(name).as_directory() as folder:
            state = load_training_state(Path(folder))
    assert state is not None, "the first rank has read the state that it names"
    if not known:
        # So that Ray Train counts it among those that it keeps and removes.
        ray.train.report(
            {"stage": run.stage.name, "next_step": state.next_step, SCORE: state.next_step},
            checkpoint=store.checkpoint(name) if rank == 0 else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            validation=requested_validation(run, state.next_step),
        )
    return state


def _newest_good(store: CheckpointStore, stage: str) -> tuple[str | None, TrainingState | None]:
    # A folder without its last file is what an attempt leaves that ended while it wrote.
    names = [name for name in store.names() if store.exists(f"{name}/{STATE_FILE}")]
    for name in names:
        try:
            with store.checkpoint(name).as_directory() as folder:
                return name, load_training_state(Path(folder))
        except CheckpointError as error:
            logger.warning("stage %s: %s; the one before it is used", stage, str(error).partition(";")[0])
    if names:
        logger.warning("stage %s: all its checkpoints are damaged, it starts at step 0", stage)
    return None, None


def _reported_names() -> set[str]:
    """Names of the checkpoints that Ray Train knows of."""
    reported = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
    return {PurePosixPath(entry.checkpoint.path).name for entry in reported}


def _remove_leftovers(store: CheckpointStore, keep: set[str]) -> None:
    """Remove what earlier attempts wrote without reporting it, which Ray Train would never remove."""
    for name in store.names():
        if name not in keep:
            store.filesystem.delete_dir(f"{store.path}/{name}")

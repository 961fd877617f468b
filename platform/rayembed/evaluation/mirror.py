"""A folder with the data of registry tasks, for clusters without a network.

    <mirror>/<organisation>__<dataset>/<revision>/    the dataset's files as the hub has them
    <mirror>/<organisation>__<dataset>/<revision>/mirror.json    their names and sizes, written last

Only where the rows are read changes: prompts, metrics and the revision in the results stay the task's own.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import atomic_directory, fetch, location_of
from rayembed.records.mteb_tasks import mirror_folder, point_at_mirror

logger = logging.getLogger(__name__)

MANIFEST = "mirror.json"
_SHOWN = 10


@dataclass(frozen=True)
class Mirror:
    """The mirror in `folder`."""

    folder: Path

    def dataset_folder(self, task: AbsTask) -> Path:
        """Where the rows of `task` lie."""
        return mirror_folder(task, self.folder)

    def make(self, tasks: Iterable[AbsTask]) -> None:
        """Download what is missing; a dataset that is complete is left alone, a broken one is fetched anew.

        Raises:
            ResourceError: a dataset cannot be fetched; those before it stay.
        """
        by_folder = {self.dataset_folder(task): task for task in tasks}
        for number, (target, task) in enumerate(by_folder.items(), start=1):
            if not list(_damage(fetch(target))):
                logger.info("%d/%d %s is there", number, len(by_folder), task.metadata.name)
                continue
            logger.info(
                "%d/%d fetching %s into %s", number, len(by_folder), task.metadata.name, location_of(target)
            )
            with atomic_directory(target) as folder:
                self._fetch(task, folder)
                sizes = {
                    str(path.relative_to(folder)): path.stat().st_size
                    for path in sorted(folder.rglob("*"))
                    if path.is_file() and ".cache" not in path.relative_to(folder).parts
                }
                (folder / MANIFEST).write_text(json.dumps({"files": sizes}, indent=2) + "\n")

    def check(self, tasks: Iterable[AbsTask]) -> None:
        """Compare file names and sizes with the manifests and look for every subset and split.

        Raises:
            DataError: something is missing; every affected task is named.
        """
        problems = [f"{task.metadata.name}: {problem}" for task in tasks for problem in self._problems(task)]
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise DataError(
                f"the mirror {location_of(self.folder)} lacks data: {'; '.join(problems[:_SHOWN])}{more}; "
                "run `rayembed mirror make` where a network is, or leave these tasks out"
            )

    def point(self, task: AbsTask) -> AbsTask:
        """Make `task` read its rows from the mirror."""
        point_at_mirror(task, self.folder)
        return task

    def _problems(self, task: AbsTask) -> Iterator[str]:
        # A task that `point` has changed already names the folder itself.
        path = Path(str(task.metadata.dataset["path"]))
        folder = fetch(path if path.is_absolute() else self.dataset_folder(task))
        damage = list(_damage(folder))
        yield from damage
        if not damage:
            yield from _missing_splits(task, folder)

    @staticmethod
    def _fetch(task: AbsTask, folder: Path) -> None:
        dataset = task.metadata.dataset
        try:
            huggingface_hub.snapshot_download(
                repo_id=str(dataset["path"]),
                repo_type="dataset",
                revision=str(dataset["revision"]),
                local_dir=folder,
            )
        except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise ResourceError(
                f"the data of {task.metadata.name} ({dataset['path']}) cannot be fetched: {error}; check the "
                "network and run the same command again, it continues"
            ) from error


def _damage(folder: Path) -> Iterator[str]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        yield f"no {location_of(folder)}"
        return
    for name, size in json.loads(manifest.read_text())["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            yield f"{path} is missing or cut short"


def _missing_splits(task: AbsTask, folder: Path) -> Iterator[str]:
    configurations = datasets.get_dataset_config_names(str(folder))
    for subset in task.hf_subsets:
        needed = set(task.eval_splits)
        if isinstance(task, AbsTaskRetrieval):
            prefix = "" if subset == "default" else f"{subset}-"
            parts = [(f"{prefix}corpus",), (f"{prefix}queries", "query")]
            parts.append((f"{prefix}qrels",) if prefix else ("default", "qrels"))
        else:
            parts = [(subset, "default")]
            if isinstance(task, AbsTaskClassification):
                needed.add(task.train_split)
        for names in parts:
            found = next((name for name in names if name in configurations), None)
            if found is None:
                yield f"no subset {names[0]}"
                continue
            splits = set(datasets.get_dataset_split_names(str(folder), found))
            alone = (
                isinstance(task, AbsTaskRetrieval) and len(splits) == 1
            )  # mteb takes the only one there is
            if not alone and needed - splits:
                yield f"subset {found} has no split {', '.join(sorted(needed - splits))}"

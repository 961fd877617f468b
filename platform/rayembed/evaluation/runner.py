"""Evaluate a checkpoint beside its baselines: the one function behind the job and the command."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from mteb.results import TaskResult

from rayembed.cluster import actor_pool, connect
from rayembed.data.store import build_source
from rayembed.errors import UserError
from rayembed.evaluation import bm25
from rayembed.evaluation.benchmarks import QUICKSTART, task_names
from rayembed.evaluation.scheduler import Progress, Scheduler, Unit
from rayembed.evaluation.scores import Scores, format_table, score_table, write_scores
from rayembed.evaluation.store import Candidate, ResultStore
from rayembed.evaluation.tasks import TASKS, load_task
from rayembed.evaluation.worker import Worker
from rayembed.model.checkpoint import read_manifest
from rayembed.paths import resolve

logger = logging.getLogger(__name__)

TRAINED_LABEL = "trained"
# The rows are local, so no library may wait for a hub; the bars of many actors would garble the log.
_ACTOR_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TQDM": "1",  # bm25s
}


def run(
    checkpoint: str | Path,
    *,
    output: str | Path,
    data_dir: str | Path = "data",
    baseline: tuple[str, str | Path] | None = None,
    with_bm25: bool = False,
    benchmark: str = QUICKSTART,
    tasks: Sequence[str] | None = None,
    actors: int | None = None,
) -> Scores:
    """Score `checkpoint` and its baselines on a benchmark; print the table and write scores.json.

    Stored results of the same weights, data and instructions are reused.

    Args:
        checkpoint: checkpoint folder, scored as "trained".
        output: folder of the results; on a cluster it is written by the driver alone.
        data_dir: folder of the built sources, which all nodes must see; missing sources are built.
        baseline: label and checkpoint folder of the model to compare with.
        with_bm25: score BM25 on the retrieval tasks.
        benchmark: name of a list of tasks.
        tasks: names of tasks to run instead of a benchmark.
        actors: size of the Ray actor pool; None takes one per GPU, else one per CPU; 0 runs in this process.

    Returns:
        task name -> {"metric", "base", "bm25", "trained"}.

    Raises:
        UserError: unknown task or benchmark, unreadable checkpoint or data.
        RuntimeError: a task failed; results of the others are stored.
    """
    names = task_names(benchmark, tasks)
    output, data_dir = resolve(output), resolve(data_dir)
    candidates = {"trained": _candidate(TRAINED_LABEL, checkpoint)}
    if baseline is not None:
        candidates["base"] = _candidate(*baseline)
    if with_bm25:
        candidates["bm25"] = Candidate("bm25", bm25.REVISION, None)

    for source in dict.fromkeys(TASKS[name].source for name in names):
        build_source(source, data_dir)
    loaded = {name: load_task(name, data_dir) for name in names}
    results = _results(candidates.values(), loaded, ResultStore(output), data_dir, actors)

    columns = {
        column: {task: result.get_score() for task, result in results[candidate].items()}
        for column, candidate in candidates.items()
    }
    scores = score_table(names, columns)
    path = write_scores(scores, output)
    print(format_table(scores), flush=True)
    logger.info("scores written to %s", path)
    return scores


def _candidate(label: str, checkpoint: str | Path) -> Candidate:
    if not label or label in (".", "..") or "/" in label:
        raise UserError(f"{label!r} cannot name a model; use a plain word such as untrained")
    folder = resolve(checkpoint)
    return Candidate(label, read_manifest(folder)["digest"], folder)


def _results(
    candidates: Iterable[Candidate],
    tasks: Mapping[str, Any],
    store: ResultStore,
    data_dir: Path,
    actors: int | None,
) -> dict[Candidate, dict[str, TaskResult]]:
    """Results of all candidates on all tasks that apply to them; stored ones are not run again."""
    results: dict[Candidate, dict[str, TaskResult]] = {}
    missing: list[Unit] = []
    for candidate in candidates:
        results[candidate] = {}
        for name, task in tasks.items():
            if candidate.checkpoint is None and TASKS[name].type != "Retrieval":
                continue
            stored = store.load(candidate, task)
            if stored is None:
                # BM25 costs next to nothing beside a model.
                missing.append(Unit(candidate, name, task.workload if candidate.checkpoint else 1))
            else:
                results[candidate][name] = stored
    reused = sum(len(stored) for stored in results.values())
    logger.info("%d results to compute, %d reused from %s", len(missing), reused, store.output)
    progress = Progress(missing)
    for unit, result in _computed(missing, data_dir, actors):
        store.save(unit.candidate, result)
        progress.finished(unit, result)
        results[unit.candidate][unit.task] = result
    return results


def _computed(units: list[Unit], data_dir: Path, actors: int | None) -> Iterator[tuple[Unit, TaskResult]]:
    if not units:
        return
    if actors == 0:
        worker = Worker(data_dir)
        for unit in sorted(units, key=lambda unit: (unit.candidate.label, -unit.cost)):
            yield unit, worker.evaluate(unit.candidate, unit.task)
        return
    connect()
    pool, options = actor_pool(len(units), actors)
    remote = ray.remote(Worker).options(runtime_env={"env_vars": _ACTOR_ENVIRONMENT}, **options)
    yield from Scheduler(units, lambda: remote.remote(data_dir, options["num_cpus"]), pool).run()

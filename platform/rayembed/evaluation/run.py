"""Evaluate a checkpoint and its baselines: the one function behind the job and the command."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ray
from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.results import TaskResult

from rayembed.common.errors import UserError
from rayembed.common.paths import location_of, resolve
from rayembed.common.ray_cluster import connect
from rayembed.common.ray_work import ActorPool, pool_resources
from rayembed.common.settings import Precision
from rayembed.contract import Contract
from rayembed.engine.vector_formats import VectorForm
from rayembed.evaluation.catalogue import QUICKSTART, Catalogue, Selection, TaskReference, aggregate
from rayembed.evaluation.endpoint import EndpointEngine
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import (
    Candidate,
    Endpoint,
    ModelRecord,
    ResultStore,
    overlap_note,
    task_record,
    trained_sources,
    write_record,
)
from rayembed.evaluation.scores import Scores, score_table, write_scores
from rayembed.evaluation.shards import EmbeddingStore, may_share
from rayembed.evaluation.units import SHARD_TOKENS, Unit, UnitQueue, task_units, text_sets
from rayembed.evaluation.worker import (
    BM25_REVISION,
    EvaluationSetup,
    EvaluationWorker,
    Outcome,
    UnitProgress,
    check_bm25,
)
from rayembed.model.checkpoint import read_manifest

logger = logging.getLogger(__name__)

TRAINED_LABEL = "trained"
BM25_LABEL = "bm25"
# The bars of many actors would garble the log.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DISABLE_TQDM": "1"}
# Where the rows are local, no library may wait for a hub.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

Results = dict[Candidate, dict[str, TaskResult]]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated and how.

    Attributes:
        selection: the benchmark and its tasks.
        setup: what the workers share.
        actors: size of the actor pool; None one per GPU, else one per CPU; 0 runs in this process.
        shard_tokens: text sets above this are encoded in shards.
        keep_embeddings: keep the shards of tasks that have been scored.
    """

    selection: Selection
    setup: EvaluationSetup
    actors: int | None = None
    shard_tokens: float = SHARD_TOKENS
    keep_embeddings: bool = False


def run(
    checkpoint: str | Path | None = None,
    *,
    output: str | Path,
    data_dir: str | Path = "data",
    baseline: tuple[str, str | Path] | None = None,
    with_bm25: bool = False,
    benchmark: str = QUICKSTART,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str | Path] = (),
    mirror: str | Path | None = None,
    instructions: str = "auto",
    endpoint: Endpoint | None = None,
    name: str = TRAINED_LABEL,
    actors: int | None = None,
    shard_tokens: float = SHARD_TOKENS,
    keep_embeddings: bool = False,
    precision: Precision = "auto",
    vectors: VectorForm | None = None,
    cache: str | Path | None = None,
) -> Scores:
    """Score a checkpoint or an endpoint and its baselines; write scores.json.

    Stored results of the same weights, data and instructions are reused; shards of an interrupted run too.

    Args:
        checkpoint: checkpoint folder, scored as "trained".
        output: folder of the results and of the vectors of shards, which all nodes must see.
        data_dir: folder of the built sources, which all nodes must see; missing sources are built.
        baseline: label and checkpoint folder of the model to compare with.
        with_bm25: score BM25 on the retrieval tasks.
        benchmark: name of a built-in benchmark or of one in mteb's registry.
        tasks: names of tasks to run instead of a benchmark.
        task_files: YAML files of own tasks; they can be named in `tasks`, or all be run as benchmark "own".
        mirror: folder with the data of registry tasks.
        instructions: policy or file, see `evaluation.instructions`.
        endpoint: score a service in place of a checkpoint.
        name: label of the model's folder under `output`.
        actors: size of the Ray actor pool; None takes one per GPU, else one per CPU; 0 runs in this process.
        shard_tokens: text sets above this many estimated tokens are encoded in shards.
        keep_embeddings: keep the vectors of shards when their task is done.
        precision: number format of checkpoints; with fp32 scores do not depend on how the work is divided.
        vectors: form in which they are compared; None: as they are. Stored results do not tell it, so each
            form needs another `output`.
        cache: folder that keeps all vectors of checkpoints, for further runs on the same texts.

    Returns:
        task name -> {"metric", "base", "bm25", "trained"}.

    Raises:
        UserError: unknown task or benchmark, unreadable checkpoint or data, another run in the same folder.
        RuntimeError: a task failed; results of the others are stored.
    """
    output = resolve(output)
    catalogue = Catalogue(
        resolve(data_dir),
        tuple(resolve(file) for file in task_files),
        resolve(mirror) if mirror is not None else None,
    )
    selection = catalogue.select(benchmark, tasks)
    policy = InstructionPolicy.named(instructions)
    candidates = {"trained": _candidate(name, checkpoint, endpoint)}
    if baseline is not None:
        candidates["base"] = _candidate(baseline[0], baseline[1], None)
    if with_bm25:
        check_bm25(selection.references)
        candidates["bm25"] = Candidate(BM25_LABEL, BM25_REVISION, None)
    plan = EvaluationPlan(
        selection,
        EvaluationSetup(
            catalogue, policy, output, precision, vectors, resolve(cache) if cache is not None else None
        ),
        actors,
        shard_tokens,
        keep_embeddings,
    )
    store = ResultStore(output)
    with store.writing():
        catalogue.prepare(selection.references)
        loaded = {reference: catalogue.load(reference) for reference in selection.references}
        results = _results(list(candidates.values()), loaded, plan, store)
    return _write(candidates, results, loaded.values(), selection, output)


def _write(
    candidates: Mapping[str, Candidate],
    results: Results,
    loaded: Iterable[AbsTask],
    selection: Selection,
    output: Path,
) -> Scores:
    """Leave a record of each model and the table of all; `candidates` are by the column of the table."""
    about = {task.metadata.name: task.metadata for task in loaded}
    about |= {name: aggregate(name).metadata for name in selection.tasks if name not in about}
    for candidate in candidates.values():
        if candidate.encodes:
            write_record(_record(candidate, selection, results[candidate], about), output)
    columns = {
        column: {task: result.get_score() for task, result in results[candidate].items()}
        for column, candidate in candidates.items()
    }
    scores = score_table({name: about[name].main_score for name in selection.tasks}, columns)
    path = write_scores(scores, output)
    logger.info("scores written to %s", location_of(path))
    return scores


def _candidate(label: str, checkpoint: str | Path | None, endpoint: Endpoint | None) -> Candidate:
    if not label or label in (".", "..") or "/" in label:
        raise UserError(f"{label!r} cannot name a model; use a plain word such as untrained")
    if endpoint is not None:
        return Candidate(label, EndpointEngine.connect(endpoint).digest, None, endpoint)
    if checkpoint is None:
        raise UserError("name what to score: a checkpoint folder or an endpoint")
    folder = resolve(checkpoint)
    return Candidate(label, read_manifest(folder)["digest"], folder)


def _record(
    candidate: Candidate,
    selection: Selection,
    results: Mapping[str, TaskResult],
    about: Mapping[str, TaskMetadata],
) -> ModelRecord:
    manifest = read_manifest(candidate.checkpoint) if candidate.checkpoint is not None else {}
    sources = trained_sources(manifest)
    tasks = [
        task_record(
            results[name],
            type=str(about[name].type),
            metric=about[name].main_score,
            overlap=overlap_note(about[name], sources),
        )
        for name in selection.tasks
    ]
    versions = {package: version(package) for package in ("mteb", "torch", "transformers")}
    return ModelRecord(candidate.label, candidate.digest, selection.benchmark, tuple(tasks), versions)


def contract_of(candidate: Candidate) -> Contract:
    """The contract of a checkpoint or of what an endpoint tells."""
    if candidate.endpoint is not None:
        return EndpointEngine.connect(candidate.endpoint).contract
    assert candidate.checkpoint is not None
    return Contract.load(candidate.checkpoint)


def _results(
    candidates: Sequence[Candidate],
    tasks: Mapping[TaskReference, AbsTask],
    plan: EvaluationPlan,
    store: ResultStore,
) -> Results:
    """Results of all candidates on all tasks that apply to them; stored ones are not run again."""
    results: Results = {candidate: {} for candidate in candidates}
    missing: list[Unit] = []
    contracts: dict[Candidate, Contract] = {}
    for candidate in candidates:
        contract = contract_of(candidate) if candidate.encodes else None
        if contract is not None:
            contracts[candidate] = contract
            plan.setup.policy.check((task.metadata for task in tasks.values()), contract)
        for reference, task in tasks.items():
            if contract is None and task.metadata.type != "Retrieval":
                continue
            given = plan.setup.policy.instructions(task.metadata, contract) if contract else None
            stored = store.load(candidate, task, given, plan.setup.precision)
            if stored is not None:
                results[candidate][reference.name] = stored
                continue
            missing += task_units(
                candidate,
                reference,
                text_sets(task),
                max_length=contract.max_length if contract else 1,
                shard_tokens=plan.shard_tokens,
            )
    reused = sum(len(stored) for stored in results.values())
    scorings = sum(unit.shard is None for unit in missing)
    logger.info("%d results to compute, %d reused from %s", scorings, reused, location_of(store.output))
    waiting = {unit for unit in missing if unit.shard is None}
    scored: list[Unit] = []  # whose shards are still there
    for unit, outcome in _computed(missing, plan):
        if outcome.result is None:
            continue
        waiting.remove(unit)
        store.save(unit.candidate, outcome.result)
        results[unit.candidate][unit.reference.name] = outcome.result
        if unit.shards and not plan.keep_embeddings:
            scored.append(unit)
        for done in tuple(scored):
            if not any(may_share(done.shards, other.shards) for other in waiting):
                vectors = EmbeddingStore(store.output, done.candidate.digest, contracts[done.candidate])
                vectors.remove(tasks[done.reference].metadata)
                scored.remove(done)
    _join_aggregates(results, tasks, store)
    return results


def _join_aggregates(results: Results, tasks: Mapping[TaskReference, AbsTask], store: ResultStore) -> None:
    """Add the results of aggregate tasks, made by mteb from those of their parts."""
    for name in dict.fromkeys(reference.part_of for reference in tasks if reference.part_of):
        parts = [reference.name for reference in tasks if reference.part_of == name]
        for candidate, found in results.items():
            if set(parts) <= set(found):
                found[name] = aggregate(name).combine_task_results([found[part] for part in parts])
                store.save(candidate, found[name])


def _computed(units: list[Unit], plan: EvaluationPlan) -> Iterator[tuple[Unit, Outcome]]:
    """Units with their outcomes, in the order in which they are done."""
    if not units:
        return
    queue = UnitQueue(units)
    if plan.actors == 0:
        progress = UnitProgress(queue)
        outcomes = _in_this_process(queue, EvaluationWorker(plan.setup))
    else:
        connect()
        size, resources = pool_resources(len(units), plan.actors)
        progress = UnitProgress(queue, size)
        local = plan.setup.catalogue.mirror is not None or all(
            reference.origin != "mteb" for reference in plan.selection.references
        )
        environment = {"env_vars": _QUIET | (_OFFLINE if local else {})}
        remote = ray.remote(EvaluationWorker).options(runtime_env=environment, **resources)
        outcomes = ActorPool(
            "evaluation",
            queue,
            lambda: remote.remote(plan.setup, resources["num_cpus"]),
            size,
            message=progress.started,
            try_again=False,
            heartbeat=progress.heartbeat,
        ).run()
    for unit, outcome in outcomes:
        progress.finished(unit, outcome)
        yield unit, outcome


def _in_this_process(queue: UnitQueue, worker: EvaluationWorker) -> Iterator[tuple[Unit, Outcome]]:
    before: list[Unit] = []
    while (unit := queue.take(before)) is not None:
        before.append(unit)
        outcome = worker.run(unit)
        queue.done(unit)
        yield unit, outcome

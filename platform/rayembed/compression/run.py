"""Running a study: prune, train again, pack, score and measure, each piece once.

    pruned/sparsegpt-2-4-KEY             a checkpoint                 on Ray
    retrained/sparsegpt-2-4-distilled-KEY    a run; its model         on Ray Train, one after the other
    packed/...-int8-KEY                  a checkpoint, packed         on Ray
    scores/...-int8-128-binary-KEY       results                      on Ray
    speed/...-int8-KEY.json              memory, texts a second       on Ray, one at a time

KEY names all that a piece is made from. A study that is run again takes the pieces that are there.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rayembed.common.device import resolve_device
from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_write, remove, resolve
from rayembed.common.ray_work import run_items
from rayembed.compression.layers import Sparsity, prune_backbone
from rayembed.compression.study import CalibrationConfig, CompressionConfig, StudyCell, cells
from rayembed.config.loading import load_recipe, validate_recipe
from rayembed.config.run import RunConfig
from rayembed.contract.packing import PackedBatch, pack_ids, split_packed
from rayembed.contract.ranges import VectorRanges
from rayembed.data.plan import fingerprint
from rayembed.engine.bulk.inputs import find_files, streamed
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import VectorForm
from rayembed.evaluation.catalogue import Catalogue
from rayembed.evaluation.results import RECORD_FILE, ModelRecord, read_record
from rayembed.model.checkpoint import MANIFEST_FILE, LoadedModel, load_model, read_manifest, save_model
from rayembed.model.packed import PACKED_FILE, WeightFormat

Train = Callable[[RunConfig], Path]
"""Trains a run and returns its model folder."""

LABEL = "model"
_TOKENS = 4096  # of a calibration batch
_DRAWN_FROM = 50  # rows for each calibration text


@dataclass(frozen=True)
class Measured:
    """A cell and what is known of it.

    Attributes:
        record: its scores.
        disk_bytes: of the packed weights.
        memory_bytes: of the weights as the engine holds them.
        vector_bytes: of a vector in an index.
        texts_per_second: of the calibration texts, through the engine.
    """

    cell: StudyCell
    record: ModelRecord
    disk_bytes: int
    memory_bytes: int
    vector_bytes: int
    texts_per_second: float


@dataclass(frozen=True)
class Pieces:
    """Where the pieces of a cell are.

    Attributes:
        pruned: checkpoint before it is trained again; of a dense cell the study's own.
        run: configuration that trains it again; None: not.
        packed: checkpoint of packed weights.
        record: file of its scores, in a folder of results.
        speed: file.
    """

    pruned: Path
    run: RunConfig | None
    packed: Path
    record: Path
    speed: Path

    @property
    def trained(self) -> Path:
        """The checkpoint that is packed."""
        return self.pruned if self.run is None else resolve(self.run.output) / self.run.name / "model"


def plan(study: CompressionConfig, base: Path) -> dict[StudyCell, Pieces]:
    """Where everything of a study goes; all of its recipes are read.

    Args:
        study: the study.
        base: folder of its file.

    Raises:
        UserError: the checkpoint, a recipe or a task is not valid, or there are no calibration texts.
    """
    task_files = tuple(resolve(file) for file in study.task_files)
    Catalogue(resolve(study.data_directory), task_files).select(study.benchmark, study.tasks)
    folder, checkpoint = resolve(study.output) / study.name, resolve(study.checkpoint)
    texts = [(file.name, file.size, file.changed) for file in find_files(study.calibration.path)]
    calibration = {"texts": texts, "calibration": study.calibration.model_dump()}
    start = {"checkpoint": read_manifest(checkpoint)["digest"]}
    planned = {}
    for cell in cells(study):
        pruned, made, words = checkpoint, dict[str, Any](start), "dense"
        if cell.sparsity is not None:
            words = f"{cell.sparsity.method}-{cell.sparsity.pattern}"
            made |= {"sparsity": asdict(cell.sparsity)}
            if cell.sparsity.method != "magnitude":
                made |= calibration
            pruned = folder / "pruned" / _named(words, made)
        run = None
        if cell.retraining != "none":
            words = f"{words}-{cell.retraining}"
            run = _run_config(study, cell, base, pruned, folder / "retrained")
            made |= {"run": run.model_dump(mode="json")}
            run = run.model_copy(update={"name": _named(words, made)})
        words, made = f"{words}-{cell.weights}", made | {"weights": cell.weights}
        if study.measures_ranges:
            made |= calibration
        packed = folder / "packed" / _named(words, made)
        tasks = [study.benchmark, study.tasks, [file.read_text() for file in task_files]]
        scored = made | {"vectors": cell.vectors.model_dump(), "tasks": tasks}
        scores = folder / "scores" / _named(f"{words}-{cell.vectors}", scored)
        record = scores / LABEL / RECORD_FILE
        planned[cell] = Pieces(pruned, run, packed, record, folder / "speed" / f"{packed.name}.json")
    return planned


def _named(words: str, made_from: Mapping[str, Any]) -> str:
    return f"{words}-{fingerprint(made_from)[:8]}".replace(":", "-")


def _run_config(
    study: CompressionConfig, cell: StudyCell, base: Path, pruned: Path, folder: Path
) -> RunConfig:
    """The recipe that trains a pruned checkpoint again.

    Raises:
        ConfigError: the recipe is not valid; the message names it.
    """
    retraining = study.retraining[cell.retraining]
    local = base / retraining.recipe
    # It takes over the contract and pooling of the dense one, as the pruned one is not there yet.
    changes = {
        "base_model": str(resolve(study.checkpoint)),
        "base_layers": None,
        "keep_zeros": True,
        "validation": None,
    }
    recipe = local if local.is_file() else retraining.recipe
    try:
        raw = load_recipe(recipe, RunConfig, changes | retraining.set).model_dump(mode="json")
        weights = {
            "vector_distillation": retraining.distillation, "state_matching": retraining.state_matching
        }  # fmt: skip
        for name, weight in weights.items():
            for stage in raw["stages"] if weight is not None else ():
                stage["loss"].append({"type": name, "weight": weight, "teacher": changes["base_model"]})
        return validate_recipe(
            raw | {"base_model": str(pruned), "output": str(folder)}, RunConfig, str(recipe)
        )
    except ConfigError as error:
        raise ConfigError(f"retraining {cell.retraining}: {error}") from error


def run_study(
    study: CompressionConfig, base: Path, train: Train, score: Callable[..., Any], actors: int | None = None
) -> list[Measured]:
    """Make the pieces that are missing and measure all cells.

    Args:
        study: the study.
        base: folder of its file.
        train: trains a run; called here, as it starts workers of its own.
        score: `evaluation.run.run`, or what stands for it.
        actors: most Ray actors, see `run_items`.

    Raises:
        UserError: anything in the study, its recipes or the data that stands in the way.
        ItemsFailed: some pieces failed; those of the same kind are done.
    """
    planned = plan(study, base)
    texts = calibration_texts(study.calibration)
    pieces = list(planned.values())
    sparsities = {own.pruned: cell.sparsity for cell, own in planned.items() if cell.sparsity}
    _make("pruning", partial(prune_checkpoint, resolve(study.checkpoint), texts), sparsities, actors)
    for own in {own.trained: own for own in pieces}.values():
        if own.run is not None and not (own.trained / MANIFEST_FILE).is_file():
            train(own.run)
    packs = {own.packed: (own.trained, cell.weights) for cell, own in planned.items()}
    measured = texts if study.measures_ranges else ()
    _make("packing", partial(pack_checkpoint, measured), packs, actors)
    options: dict[str, Any] = {
        "benchmark": study.benchmark,
        "tasks": study.tasks,
        "task_files": study.task_files,
    }
    options |= {"data_dir": resolve(study.data_directory), "actors": 0, "name": LABEL}
    cache = resolve(study.output) / study.name / "vectors"
    scoring = partial(score_checkpoint, partial(score, cache=cache, **options))
    # The first form of the vectors of a checkpoint encodes the texts, the others find them encoded.
    turns: tuple[dict[Path, Any], dict[Path, Any]] = {}, {}
    encoded: set[Path] = set()
    for cell, own in planned.items():
        turns[own.packed in encoded][own.record] = own.packed, cell.vectors
        encoded.add(own.packed)
    for turn in turns:
        _make("scoring", scoring, turn, actors)
    remove(cache)
    # One at a time, so that they do not slow each other down.
    _make(
        "speed",
        partial(measure_speed, texts),
        {own.speed: own.packed for own in pieces},
        0 if actors == 0 else 1,
    )
    return [_measured(cell, own) for cell, own in planned.items()]


def _make(
    title: str, function: Callable[[Path, Any], None], items: Mapping[Path, Any], actors: int | None
) -> None:
    """Call `function` on Ray with each path that is not there yet and what belongs to it."""
    missing = [item for item in items.items() if not item[0].exists()]
    for _ in run_items(partial(_worker, function), missing, title=title, actors=actors):
        pass


def _worker(function: Callable[[Path, Any], None]) -> Callable[[tuple[Path, Any]], None]:
    return lambda item: function(*item)


def calibration_texts(settings: CalibrationConfig) -> list[str]:
    """Texts drawn from the first rows, the same each time.

    Raises:
        DataError: no row has one of the columns.
    """
    texts: dict[str, None] = {}
    for file in find_files(settings.path):
        for row in islice(streamed(file.uri), _DRAWN_FROM * settings.count):
            values = (row.get(column) for column in settings.columns)
            texts |= {value: None for value in values if isinstance(value, str) and value.strip()}
    if not texts:
        raise DataError(
            f"{settings.path} has no texts in {', '.join(settings.columns)}; name its columns in "
            "calibration.columns"
        )
    return random.Random(0).sample(list(texts), min(settings.count, len(texts)))


def prune_checkpoint(checkpoint: Path, texts: Sequence[str], folder: Path, sparsity: Sparsity) -> None:
    """Write a pruned copy of a checkpoint."""
    model = load_model(checkpoint, dtype="auto", device=resolve_device())
    prune_backbone(model.embedder.backbone, _batches(model, texts), sparsity)
    _save(model, checkpoint, folder, {"pruned": asdict(sparsity)})


def _batches(model: LoadedModel, texts: Sequence[str]) -> list[PackedBatch]:
    tokenized = model.contract.tokenize(model.tokenizer, texts, None)
    whole = pack_ids(tokenized.input_ids, tokenized.pool_starts)
    return [batch.to(model.embedder.backbone.device) for batch in split_packed(whole, _TOKENS)]


def pack_checkpoint(texts: Sequence[str], folder: Path, source: tuple[Path, WeightFormat]) -> None:
    """Write a copy of a checkpoint with packed weights; texts measure the ranges of its vectors."""
    checkpoint, form = source
    model = load_model(checkpoint, dtype="auto")
    if texts:
        ranges = VectorRanges.of(Engine.load(checkpoint).encode(texts).vectors)
        model = replace(model, contract=model.contract.model_copy(update={"vector_ranges": ranges}))
    _save(model, checkpoint, folder, {"weights": form}, packed=form)


def _save(
    model: LoadedModel,
    parent: Path,
    folder: Path,
    made: Mapping[str, Any],
    packed: WeightFormat | None = None,
) -> None:
    manifest = read_manifest(parent)
    provenance = manifest["provenance"] | {"parent": manifest["digest"]} | made
    save_model(folder, model.embedder, model.tokenizer, model.contract, provenance=provenance, packed=packed)


def score_checkpoint(score: Callable[..., Any], record: Path, scored: tuple[Path, VectorForm]) -> None:
    """Score a checkpoint whose vectors are compared in some form, in this process."""
    checkpoint, vectors = scored
    score(checkpoint, output=record.parent.parent, vectors=None if vectors == VectorForm() else vectors)


def measure_speed(texts: Sequence[str], file: Path, checkpoint: Path) -> None:
    """Write the memory of the weights and the texts a second, the best of three rounds after a first one."""
    engine = Engine.load(checkpoint)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        engine.encode(texts)
        seconds.append(time.perf_counter() - started)
    found = {"memory_bytes": engine.weight_bytes, "texts_per_second": len(set(texts)) / min(seconds[1:])}
    atomic_write(file, json.dumps(found))


def _measured(cell: StudyCell, pieces: Pieces) -> Measured:
    disk = (pieces.packed / "backbone" / PACKED_FILE).stat().st_size
    return Measured(
        cell, read_record(pieces.record.parent), disk, **json.loads(pieces.speed.read_text()),
        vector_bytes=cell.vectors.size(read_manifest(pieces.packed)["dimensions"]),
    )  # fmt: skip

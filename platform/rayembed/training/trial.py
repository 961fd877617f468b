"""Real steps at the longest batch of a stage, to meet a lack of memory before training does, and to choose.

The steps run where a worker would: in a process of its own that Ray starts, on a GPU where training uses
them. Its peak of memory is that of a worker, and the caller survives when the system kills it. The
optimizer's state is not shared with other workers, so several need less.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist

from rayembed.common.device import resolve_device
from rayembed.common.errors import ResourceError, TrainingError
from rayembed.common.paths import atomic_write, fetch
from rayembed.common.ray_cluster import run_apart
from rayembed.config.blend import SourceConfig
from rayembed.config.training import TrainingConfig
from rayembed.contract import Contract
from rayembed.data.collate import TrainingBatch, to_training_batch
from rayembed.data.plan import PlannedBatch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.model.precision import resolve_precision
from rayembed.training.callbacks import TrainerState
from rayembed.training.preflight import GIBIBYTE, memory_of_worker
from rayembed.training.resources import advising_on_memory, memory_advice, peak_memory
from rayembed.training.run_folder import CHOICE_FILE
from rayembed.training.stage import Stage
from rayembed.training.start import start_model, step_of
from rayembed.training.step import BadBatch
from rayembed.training.trainer import set_threads, take_step

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 4  # of English text and code, roughly; tells only where long texts are cut off
_TOKENISED = 4  # batches with the most characters; the one of them with the most tokens is taken
_CHUNKS = (65_536, 32_768, 16_384, 8_192, 4_096)  # tokens that `auto` tries, after the whole batch
SMALLEST_CHUNK = _CHUNKS[-1]
_FITTING = 2  # sizes of chunks that fit and are timed; smaller ones only cost more launches
_TIMED = 2  # steps; the first one allocates memory and builds kernels, the last one counts


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: its number in the stage.
        tokens: of one worker.
        seconds: duration.
        memory: largest memory of the process, in bytes: of the GPU, else resident.
        tokens_per_chunk: that were encoded at a time; None: all.
        activation_checkpointing: whether layers were computed again.
    """

    step: int
    tokens: int
    seconds: float
    memory: int
    tokens_per_chunk: int | None
    activation_checkpointing: bool


def try_step(stage: Stage, batch: TrainingBatch) -> Trial:
    """Take a step with a batch in a process of its own and throw the weights away.

    Args:
        stage: which stage, its settings decided; those before it need not be trained, it starts from fresh
            weights.
        batch: of one worker, as `longest_batch` gives it.

    Raises:
        ResourceError: memory was not enough.
        TrainingError: the loss or the gradient is not finite.
    """
    [trial] = _tried(stage, batch, [stage.training])
    return trial


def decided(stage: Stage, folder: Path) -> Stage:
    """The stage with `auto` of chunks and checkpointing replaced by the fastest settings that fit.

    They are measured once and noted in the stage's folder: a resumed stage keeps them, because dropout is
    drawn chunk by chunk.

    Raises:
        ResourceError: none fits.
    """
    training = stage.training
    if "auto" not in (training.tokens_per_chunk, training.activation_checkpointing):
        return stage
    note = fetch(folder / CHOICE_FILE)
    if not note.is_file():
        batch = longest_batch(stage.stream, training.fewest_workers)
        trials = _measured(stage, batch)
        if not trials:
            raise ResourceError(
                f"stage {stage.name}: no size of chunks makes the longest batch fit "
                f"({batch.packed.num_tokens:,} tokens of a worker); take more workers, a smaller batch_size "
                "or a larger machine"
            )
        chosen = min(trials, key=lambda trial: trial.seconds)
        content = {"chosen": asdict(chosen), "tried": [asdict(trial) for trial in trials]}
        atomic_write(note, json.dumps(content, indent=2) + "\n")
    choice = json.loads(note.read_text())["chosen"]
    settings = {key: choice[key] for key in ("tokens_per_chunk", "activation_checkpointing")}
    logger.info(
        "stage %s: tokens_per_chunk %s and activation_checkpointing %s are the fastest that fit: "
        "%.2f s for %d tokens of the longest batch, %.1f GiB",
        stage.name, *settings.values(), choice["seconds"], choice["tokens"], choice["memory"] / GIBIBYTE,
    )  # fmt: skip
    return replace(stage, training=training.model_copy(update=settings))


def _measured(stage: Stage, batch: TrainingBatch) -> list[Trial]:
    """Trials of the settings that fit, for each way of keeping activations in a process of its own."""
    wanted = stage.training.activation_checkpointing
    trials: list[Trial] = []
    for checkpointing in (False, True) if wanted == "auto" else (wanted,):
        settings = list(_candidates(stage, batch.packed.num_tokens, checkpointing))
        try:
            trials += _tried(stage, batch, settings)
        except ResourceError as error:
            logger.info("stage %s, activation_checkpointing %s: %s", stage.name, checkpointing, error)
    return trials


def _candidates(stage: Stage, tokens: int, checkpointing: bool) -> Iterator[TrainingConfig]:
    """Settings to try, the largest chunks first; on CPUs, where too much memory kills, those that fit."""
    training = stage.training
    chunks = [None, *(size for size in _CHUNKS if size < tokens)]
    for size in chunks if training.tokens_per_chunk == "auto" else [training.tokens_per_chunk]:
        settings = training.model_copy(
            update={"tokens_per_chunk": size, "activation_checkpointing": checkpointing}
        )
        needed = memory_of_worker(stage.model, settings, device=stage.device, tokens=tokens)
        if stage.device == "cuda" or needed.total < psutil.virtual_memory().available:
            yield settings


def _tried(stage: Stage, batch: TrainingBatch, settings: Sequence[TrainingConfig]) -> list[Trial]:
    if not settings:
        return []
    training = settings[-1]
    on_gpu = training.device == "cuda"
    needed = memory_of_worker(stage.model, training, device="cpu")
    try:
        return run_apart(
            partial(_steps, stage, batch, settings),
            what=f"the longest batch (step {batch.step}) with {batch.packed.num_tokens:,} tokens",
            memory=needed.weights + needed.process,
            cpus=training.cpus_per_worker,
            gpus=int(on_gpu),
            accelerator_type=training.accelerator_type if on_gpu else None,
            labels=training.worker_labels,
            environment={"DS_ACCELERATOR": stage.device},
        )
    except ResourceError as error:
        raise ResourceError(f"{error}; {memory_advice(training, batch)}") from error


def _steps(stage: Stage, batch: TrainingBatch, settings: Sequence[TrainingConfig]) -> list[Trial]:
    """Runs in a process of its own, which sets up for itself what Ray Train sets up for a worker.

    All settings keep activations the same way, so one model serves them all. It is made for the last, of the
    smallest chunks, so that it has whatever memory chunks need to add up their gradients.
    """
    training = settings[-1]
    stage = replace(stage, training=training)
    device = resolve_device()
    dtype = resolve_precision(training.precision, device)
    set_threads(training.threads_per_worker, training.workers)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            with advising_on_memory(f"stage {stage.name}", training, batch):
                wrapped = start_model(stage, None, device, dtype, rows_per_rank=batch.num_queries)
            for tried in settings:
                try:
                    trials.append(_step(replace(stage, training=tried), wrapped, device, dtype, batch))
                except ResourceError:
                    if tried is settings[-1] and not trials:
                        raise
                    torch.cuda.empty_cache()
                if len(trials) == _FITTING:
                    break
        except BadBatch as error:
            raise TrainingError(f"the longest batch (step {batch.step}): {error}; remove its rows") from error
        finally:
            dist.destroy_process_group()
    return trials


def _step(
    stage: Stage, wrapped: Any, device: torch.device, dtype: torch.dtype, batch: TrainingBatch
) -> Trial:
    training = stage.training
    step = step_of(stage, device)
    state = TrainerState(stage, wrapped, device, 0, 1, first_step=batch.step)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_TIMED):
        started = time.perf_counter()
        take_step(state, step, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return Trial(
        batch.step,
        batch.packed.num_tokens,
        seconds,
        peak_memory(device),
        training.chunk_tokens,
        bool(training.activation_checkpointing),
    )


def longest_batch(spec: StreamSpec, workers: int) -> TrainingBatch:
    """One worker's share of the batch with the most tokens, as if it were a batch of its own.

    Batches are compared by their characters, which takes milliseconds, and a few of them are tokenised.

    Args:
        spec: plan and sources of the stage.
        workers: that share a batch.
    """
    plan, cutter = PlanReader(spec.plan), spec.cutter(lanes=1)
    characters_of = [
        row_characters(PreparedRows.open(path), entry, spec.contract)
        for path, entry in zip(spec.sources, spec.blend, strict=True)
    ]
    shares = [_share(plan.read(step), workers) for step in _longest_steps(plan, characters_of)]
    batches = [to_training_batch(share.step, cutter.cut(share), rank=0, world_size=1) for share in shares]
    return max(batches, key=lambda batch: batch.packed.num_tokens)


def row_characters(rows: PreparedRows, entry: SourceConfig, contract: Contract) -> np.ndarray:
    """Characters of each row that are encoded: its query, one positive and the wanted negatives.

    Texts are cut where the contract would cut them, at four characters a token. Which positive and negatives
    a step draws is not known here, so their mean length counts.
    """
    most = contract.max_length * _CHARACTERS_PER_TOKEN
    characters = np.concatenate(
        [_encoded_characters(batch, entry, contract, most) for batch in rows.batches()]
    )
    if rows.classes is None:
        return characters
    # Documents of a labelled row are class texts, or other texts like its own.
    prefix = len(contract.prefix(entry.instruction)) if entry.symmetric else 0
    texts = rows.classes.texts
    document = np.mean([min(len(text) + prefix, most) for text in texts]) if texts else characters.mean()
    return characters + document * (1 + entry.negatives_per_query)


def _encoded_characters(
    batch: pa.Table | pa.RecordBatch, entry: SourceConfig, contract: Contract, most: int
) -> np.ndarray:
    prefixes = _prefixes(batch, entry, contract)
    before_documents = prefixes if entry.symmetric else np.zeros_like(prefixes)
    return (
        np.minimum(np.asarray(pc.binary_length(batch["query"])) + prefixes, most)
        + _drawn(batch["positives"], 1, before_documents, most)
        + _drawn(batch["negatives"], entry.negatives_per_query, before_documents, most)
    )


def _prefixes(batch: pa.Table | pa.RecordBatch, entry: SourceConfig, contract: Contract) -> np.ndarray:
    """Characters in front of each query; a row's own instruction takes the place of the source's."""
    default = contract.prefix(entry.instruction)
    own = batch["instruction"].to_pylist()
    return np.array([len(contract.prefix(text) if text else default) for text in own], dtype=np.int64)


def _drawn(lists: pa.ListArray, wanted: int, prefixes: np.ndarray, most: int) -> np.ndarray:
    """Mean length of the texts of each list times the number that is drawn."""
    counts = np.asarray(lists.value_lengths())
    lengths = np.asarray(pc.binary_length(lists.flatten())) + np.repeat(prefixes, counts)
    sums = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))])
    ends = np.cumsum(counts)
    return (sums[ends] - sums[ends - counts]) / np.maximum(counts, 1) * np.minimum(counts, wanted)


def _longest_steps(plan: PlanReader, characters_of: Sequence[np.ndarray]) -> list[int]:
    starts = np.cumsum([0, *(len(characters) for characters in characters_of)])[:-1]
    characters = np.concatenate(characters_of)
    totals = []
    for step in range(plan.steps):
        batch = plan.read(step)
        totals.append(characters[starts[batch.sources] + batch.rows].sum())
    return [int(step) for step in np.argsort(totals)[::-1][:_TOKENISED]]


def _share(batch: PlannedBatch, workers: int) -> PlannedBatch:
    return PlannedBatch(batch.step, batch.sources[::workers], batch.rows[::workers])

"""One real step at the longest batch of a stage, to meet a lack of memory before training does.

The step runs in a process of its own. Its peak of memory is that of a worker, and the caller survives when
the system kills it. The optimizer's state is not shared with other workers.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from rayembed.common.device import resolve_device
from rayembed.common.errors import ResourceError, TrainingError
from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.data.collate import CHARACTERS_PER_TOKEN, TrainingBatch, to_training_batch
from rayembed.data.plan import PlannedBatch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.model.precision import resolve_precision
from rayembed.training.callbacks import TrainerState
from rayembed.training.resources import advising_on_memory, memory_advice, peak_memory
from rayembed.training.stage import Stage
from rayembed.training.start import start_model, step_of
from rayembed.training.step import BadBatch
from rayembed.training.trainer import set_threads, take_step

_TOKENISED = 4  # batches with the most characters; the one of them with the most tokens is taken


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: its number in the stage.
        tokens: of one worker.
        seconds: duration.
        memory: largest memory of the process, in bytes: of the GPU, else resident.
    """

    step: int
    tokens: int
    seconds: float
    memory: int


def try_step(stage: Stage, batch: TrainingBatch) -> Trial:
    """Take one step with a batch in a process of its own and throw the weights away.

    Args:
        stage: which stage; those before it need not be trained, it starts from fresh weights.
        batch: of one worker, as `longest_batch` gives it.

    Raises:
        ResourceError: memory was not enough.
        TrainingError: the loss or the gradient is not finite.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_step, stage, batch).result()
        except BrokenProcessPool as error:
            raise ResourceError(
                f"the longest batch (step {batch.step}) with {batch.packed.num_tokens:,} tokens was killed, "
                f"most likely for its memory; {memory_advice(stage.training, batch)}"
            ) from error


def _step(stage: Stage, batch: TrainingBatch) -> Trial:
    """Runs in a process of its own, which sets up for itself what Ray Train sets up for a worker."""
    training = stage.training
    device = resolve_device()
    dtype = resolve_precision(training.precision, device)
    set_threads(training.threads_per_worker, training.workers)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            with advising_on_memory(f"stage {stage.name}", training, batch):
                step = step_of(stage, device, dtype)
                wrapped = start_model(stage, None, device, dtype, rows_per_rank=batch.num_queries)
            started = time.perf_counter()
            take_step(TrainerState(stage, wrapped, device, 0, 1, first_step=batch.step), step, batch)
            seconds = time.perf_counter() - started
        except BadBatch as error:
            raise TrainingError(f"the longest batch (step {batch.step}): {error}; remove its rows") from error
        finally:
            dist.destroy_process_group()
    return Trial(batch.step, batch.packed.num_tokens, seconds, peak_memory(device))


def longest_batch(spec: StreamSpec, workers: int) -> TrainingBatch:
    """One worker's share of the batch with the most tokens, as if it were a batch of its own.

    Batches are compared by their characters, which takes milliseconds, and a few of them are tokenised.

    Args:
        spec: plan and sources of the stage.
        workers: that share a batch.
    """
    plan, collator = PlanReader(spec.plan), spec.collator(rank=0, world_size=1)
    characters_of = [
        row_characters(PreparedRows.open(path), entry, spec.contract)
        for path, entry in zip(spec.sources, spec.blend, strict=True)
    ]
    shares = [_share(plan.read(step), workers) for step in _longest_steps(plan, characters_of)]
    batches = [to_training_batch(collator.record(share)) for share in shares]
    return max(batches, key=lambda batch: batch.packed.num_tokens)


def row_characters(rows: PreparedRows, entry: SourceConfig, contract: Contract) -> np.ndarray:
    """Characters of each row that are encoded: its query, one positive and the wanted negatives.

    Texts are cut where the contract would cut them, at four characters a token. Which positive and negatives
    a step draws is not known here, so their mean length counts.
    """
    most = contract.max_length * CHARACTERS_PER_TOKEN
    return np.concatenate([_encoded_characters(batch, entry, contract, most) for batch in rows.batches()])


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

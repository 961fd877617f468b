"""The longest batch of a plan: where a stage needs the most memory."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayembed.config import SourceConfig
from rayembed.contract import Contract
from rayembed.data.collate import CHARACTERS_PER_TOKEN, Collator, TrainingBatch, to_training_batch
from rayembed.data.plan import PlannedBatch
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.model.checkpoint import load_tokenizer

_TOKENISED = 4  # batches with the most characters; the one of them with the most tokens is taken


def longest_batch(spec: StreamSpec, workers: int) -> TrainingBatch:
    """One worker's share of the batch with the most tokens, as if it were a batch of its own.

    Batches are compared by their characters, which takes milliseconds, and a few of them are tokenised.

    Args:
        spec: plan and sources of the stage.
        workers: that share a batch.
    """
    sources = [PreparedRows.open(path) for path in spec.sources]
    collator = Collator(
        sources,
        spec.blend,
        spec.contract,
        load_tokenizer(spec.tokenizer),
        seed=spec.seed,
        rank=0,
        world_size=1,
    )
    plan = PlanReader(spec.plan)
    characters_of = [
        row_characters(rows, entry, spec.contract) for rows, entry in zip(sources, spec.blend, strict=True)
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

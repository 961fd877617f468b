"""Rows for `training.py`, and this platform's training step on them in one process."""

import itertools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rayembed.config.run import RunConfig
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.choose import RowChooser
from rayembed.data.collate import TrainingBatch, to_training_batch
from rayembed.data.lanes import LaneCutter, TextReader
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows
from rayembed.model.configuration import ModelConfig
from rayembed.model.pooling import MeanPoolingConfig
from rayembed.records.schema import pair_row, to_table
from rayembed.training import deepspeed
from rayembed.training.model import ModelSpec, prepare_for_stage, trainable_weights
from rayembed.training.resources import StepTimer
from rayembed.training.step import StepOutput, contrastive_loss, encode_and_backward

SOURCES = ("python-docstrings", "wordnet-glosses")


@dataclass(frozen=True)
class Batch:
    """Rows of one source, each with one positive and the same number of negatives."""

    source: int
    rows: list[dict[str, Any]]

    def columns(self) -> list[list[str]]:
        """Queries, positives, first negatives, second negatives, ..."""
        documents = [[*row["positives"], *row["negatives"]] for row in self.rows]
        return [
            [row["query"] for row in self.rows],
            *(list(column) for column in zip(*documents, strict=True)),
        ]

    @property
    def distinct_documents(self) -> int:
        """Documents after those that several rows share were counted once."""
        return len({document for column in self.columns()[1:] for document in column})

    def first(self, rows: int) -> "Batch":
        """The batch cut to its first rows."""
        return Batch(self.source, self.rows[:rows])


def plain(config: RunConfig, negatives: Sequence[int]) -> RunConfig:
    """What the peer can do too: mean pooling, one loss, no end token, each source with so many negatives."""
    [stage] = config.stages
    loss = stage.loss[0].model_copy(update={"document_to_query_weight": 0.0})
    blend = tuple(
        entry.model_copy(update={"negatives_per_query": count, "mining": None})
        for entry, count in zip(stage.blend, negatives, strict=True)
    )
    # The peer counts a prompt's trailing space as a token of its own, which it is not in front of a word.
    contract = Contract(
        max_length=config.contract.max_length,
        append_eos=False,
        instruction_template="Instruct: {instruction}\nQuery:",
    )
    return config.model_copy(
        update={
            "model": ModelConfig(pooling=MeanPoolingConfig()),
            "contract": contract,
            "stages": (stage.model_copy(update={"loss": (loss,), "blend": blend}),),
        }
    )


def distinct_batches(
    sources: Sequence[PreparedRows], negatives: Sequence[int], *, size: int, count: int
) -> list[Batch]:
    """Batches of the sources in turn, in none of which a document comes twice."""
    streams = [_rows(rows, wanted) for rows, wanted in zip(sources, negatives, strict=True)]
    return [
        Batch(index % len(sources), _without_repeats(streams[index % len(sources)], size))
        for index in range(count)
    ]


def pooled_batches(rows: PreparedRows, negatives: int, *, size: int, pool: int, count: int) -> list[Batch]:
    """Batches whose negatives are drawn from a pool of documents: the positives and others.

    A pool of at least `size * (1 + negatives)` documents is dealt out so that none comes twice.
    """
    generator = random.Random(1)
    stream = _rows(rows, 0)
    corpus = {row["positives"][0] for row in itertools.islice(_rows(rows, 0), len(rows))}
    batches = []
    for _ in range(count):
        chosen = _without_repeats(stream, size)
        positives = [row["positives"][0] for row in chosen]
        others = sorted(corpus - set(positives))
        documents = [*positives, *generator.sample(others, max(pool - size, 0))]
        if len(documents) >= size * (1 + negatives):
            spare = iter(documents[size:])
            drawn = [[next(spare) for _ in range(negatives)] for _ in chosen]
        else:
            drawn = [_others(generator, documents, own, negatives) for own in positives]
        batches.append(
            Batch(
                0,
                [
                    _row(row["query"], row["positives"][0], texts)
                    for row, texts in zip(chosen, drawn, strict=True)
                ],
            )
        )
    return batches


def _others(generator: random.Random, documents: list[str], own: str, count: int) -> list[str]:
    return [text for text in generator.sample(documents, count + 1) if text != own][:count]


def _rows(rows: PreparedRows, negatives: int) -> Iterator[dict[str, Any]]:
    """Rows in random order, cut to their first positive and so many negatives; once round and again."""
    generator = random.Random(0)
    while True:
        for number in generator.sample(range(len(rows)), len(rows)):
            [values] = rows.take(np.array([number]), ["query", "positives", "negatives"])
            if len(values["negatives"]) >= negatives:
                yield _row(values["query"], values["positives"][0], values["negatives"][:negatives])


def _row(query: str, positive: str, negatives: Sequence[str]) -> dict[str, Any]:
    return pair_row(query, [positive], negatives, dataset="benchmark", task_type="retrieval")


def _without_repeats(rows: Iterable[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The next rows that share no document."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in rows:
        if len(set(row["document_ids"])) == len(row["document_ids"]) and not seen & set(row["document_ids"]):
            seen |= set(row["document_ids"])
            found.append(row)
            if len(found) == size:
                break
    return found


class Ours:
    """The platform's own collator, packed step and DeepSpeed engine, in this process."""

    def __init__(self, config: RunConfig, base: Path, batches: Sequence[Batch], dtype: torch.dtype):
        [self._stage] = config.stages
        self._budget = config.training.tokens_per_chunk
        self._cutter, self._planned = _cutter(config, base, batches)
        embedder = ModelSpec.of(config, base).build(dtype)
        self.adapters = trainable_weights(embedder)
        prepare_for_stage(embedder, self._stage, config.training)
        _single_process_group()
        self._wrapped = deepspeed.wrap(
            embedder.train(), self._stage, config.training, rows_per_rank=len(batches[0].rows), dtype=dtype
        )

    def batch(self, index: int) -> TrainingBatch:
        """Tensors of a batch, tokenised now."""
        return to_training_batch(index, self._cutter.cut(self._planned[index]), rank=0, world_size=1)

    def step(self, index: int) -> torch.Tensor:
        """One step on a batch; returns the loss before it."""
        batch, timer = self.batch(index), StepTimer()

        def loss_of(vectors_ND: torch.Tensor) -> StepOutput:
            return contrastive_loss(vectors_ND, batch, self._stage, timer)

        output = encode_and_backward(self._wrapped, batch.packed, loss_of, timer, self._budget)
        deepspeed.take_step(self._wrapped)
        return output.loss.detach()


def _cutter(config: RunConfig, base: Path, batches: Sequence[Batch]) -> tuple[LaneCutter, list[PlannedBatch]]:
    """Cutter over exactly these rows, and a plan of one step for each batch."""
    [stage] = config.stages
    rows: list[list[dict[str, Any]]] = [[] for _ in stage.blend]
    planned = []
    for step, batch in enumerate(batches):
        first = len(rows[batch.source])
        rows[batch.source] += batch.rows
        numbers = np.arange(first, first + len(batch.rows))
        planned.append(PlannedBatch(step, np.full_like(numbers, batch.source), numbers))
    prepared = [PreparedRows(to_table(values, "pairs").to_batches()) for values in rows]
    tokenizer = load_tokenizer(base)
    chooser = RowChooser(prepared, stage.blend, seed=config.seed)
    return LaneCutter(chooser, stage.blend, TextReader(config.contract, tokenizer), 1), planned


def _single_process_group() -> None:
    """What DeepSpeed wants to see in a process of its own."""
    if not dist.is_initialized():
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
        os.environ.update(alone)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

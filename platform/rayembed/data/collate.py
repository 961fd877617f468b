"""One step of the plan -> what one worker feeds to the model.

Each distinct document of the global batch is encoded once, by one worker. Which worker that is, and where its
vector will stand among the gathered ones, follows from the plan alone, so no communication is needed.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rayembed.common.errors import DataError
from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.contract.packing import PackedBatch, pack_ids
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows
from rayembed.data.token_cache import TokenCache, token_keys
from rayembed.losses.infonce import candidate_mask

CHARACTERS_PER_TOKEN = 4  # of English text and code, roughly; tells only where long texts are cut off

DocumentKey = tuple[str, str]
"""Content hash of a document and the instruction in front of it ("" for none): what makes its vector."""


@dataclass(frozen=True)
class ChosenRow:
    """A row with its documents picked: target, known positives, negatives, texts, teacher's scores."""

    source: int
    query: str
    instruction: str
    target: DocumentKey
    positives: list[DocumentKey]
    negatives: list[DocumentKey]
    texts: dict[DocumentKey, str]
    teacher_scores: dict[DocumentKey, float]


@dataclass(frozen=True)
class TrainingBatch:
    """One worker's part of a global batch.

    Shapes: Q queries and E documents of this worker, K documents and B queries of all workers, worker by
        worker.

    Attributes:
        step: step of the stage.
        packed: this worker's Q queries followed by its E documents.
        num_queries: Q.
        target_Q: position of each query's positive among the K documents.
        allowed_QK: which documents compete for each query.
        competing_QB: which other queries compete for the positive of each query, leaving out those that it
            answers as well; see `document_to_query`.
        document_counts: E of each worker, in rank order; they add up to K.
        query_counts: Q of each worker, in rank order; they add up to B.
        source_Q: position of each row's source in the blend.
        rows: position of each row in its source, to name a bad batch.
        teacher_QK: a teacher's scores of the row's own documents, not a number elsewhere; None where no row
            of the batch carries scores.
    """

    step: int
    packed: PackedBatch
    num_queries: int
    target_Q: torch.Tensor
    allowed_QK: torch.Tensor
    competing_QB: torch.Tensor
    document_counts: list[int]
    query_counts: list[int]
    source_Q: torch.Tensor
    rows: list[int]
    teacher_QK: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "TrainingBatch":
        """Copy with all tensors on `device`."""
        return replace(
            self,
            packed=self.packed.to(device),
            target_Q=self.target_Q.to(device, non_blocking=True),
            allowed_QK=self.allowed_QK.to(device, non_blocking=True),
            competing_QB=self.competing_QB.to(device, non_blocking=True),
            source_Q=self.source_Q.to(device, non_blocking=True),
            teacher_QK=None if self.teacher_QK is None else self.teacher_QK.to(device, non_blocking=True),
        )


class Collator:
    """Fetches the rows of planned batches and tokenises one worker's part of them."""

    def __init__(
        self,
        sources: Sequence[PreparedRows],
        blend: Sequence[SourceConfig],
        contract: Contract,
        tokenizer: Any,
        *,
        seed: int,
        rank: int,
        world_size: int,
        token_caches: Sequence[TokenCache] = (),
    ):
        self._sources = sources
        self._blend = blend
        self._contract = contract
        self._tokenizer = tokenizer
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._token_caches = token_caches

    def record(self, batch: PlannedBatch) -> dict[str, Any]:
        """Plain lists and numbers of this worker's part, ready to travel as one Arrow row."""
        rows = self.choose(batch)
        texts = {key: text for row in rows for key, text in row.texts.items()}
        rows_of = [rows[rank :: self._world_size] for rank in range(self._world_size)]
        owned = self._share_documents(texts, rows_of)
        position = {key: index for index, key in enumerate(key for keys in owned for key in keys)}
        mine = rows_of[self._rank]
        gathered = [row for part in rows_of for row in part]
        positions_of, answered_by = _by_text(position), _queries_answered_by(gathered)
        texts_and_instructions = [
            *((row.query, row.instruction) for row in mine),
            *((texts[key], key[1]) for key in owned[self._rank]),
        ]
        input_ids, pool_starts = self._tokenize(texts_and_instructions)
        return {
            "step": batch.step,
            "input_ids": input_ids,
            "pool_starts": pool_starts,
            "num_queries": len(mine),
            "positives": [_positive_positions(row, position, positions_of) for row in mine],
            "negatives": [[position[key] for key in row.negatives] for row in mine],
            "in_batch": [self._blend[row.source].in_batch_negatives for row in mine],
            "in_batch_all": [self._blend[row.source].in_batch_negatives for row in gathered],
            "answered": [answered_by[row.target[0]] for row in mine],
            "document_counts": [len(keys) for keys in owned],
            "query_counts": [len(part) for part in rows_of],
            "source": [row.source for row in mine],
            "row": batch.rows[self._rank :: self._world_size].tolist(),
            "scored": [[position[key] for key in row.teacher_scores] for row in mine],
            "teacher_scores": [list(row.teacher_scores.values()) for row in mine],
        }

    def choose(self, batch: PlannedBatch) -> list[ChosenRow]:
        """The rows of a batch with their texts, the same for every worker."""
        return [self._choose(batch.step, source, row) for source, row in batch.pairs()]

    def _choose(self, step: int, source: int, row: int) -> ChosenRow:
        """Pick the positive and the hard negatives of a row; seed, step and row alone decide."""
        entry = self._blend[source]
        [values] = self._sources[source].row(row).to_pylist()
        generator = np.random.default_rng([self._seed, step, source, row])
        num_positives = len(values["positives"])
        target = int(generator.integers(num_positives))
        num_negatives = len(values["negatives"])
        wanted = min(entry.negatives_per_query, num_negatives)
        picked = generator.choice(num_negatives, size=wanted, replace=False) + num_positives
        wordings = (own,) if (own := values["instruction"]) else entry.wordings
        instruction = wordings[int(generator.integers(len(wordings)))] if wordings else ""
        document_instruction = instruction if entry.symmetric else ""
        keys = [(document_id, document_instruction) for document_id in values["document_ids"]]
        documents = values["positives"] + values["negatives"]
        used = [target, *picked.tolist()]
        scores = values.get("teacher_scores")
        if scores and len(scores) != len(keys):
            raise DataError(
                f"source {entry.source}, row {row} has {len(scores)} teacher_scores, not {len(keys)}; "
                "give one for each positive and negative, in the order of document_ids"
            )
        return ChosenRow(
            source=source,
            query=values["query"],
            instruction=instruction,
            target=keys[target],
            positives=keys[:num_positives],
            negatives=[keys[index] for index in picked],
            texts={keys[index]: documents[index] for index in used},
            teacher_scores={keys[index]: scores[index] for index in used} if scores else {},
        )

    def _share_documents(
        self, texts: dict[DocumentKey, str], rows_of: Sequence[Sequence[ChosenRow]]
    ) -> list[list[DocumentKey]]:
        """Documents of each worker, in the order in which the rows name them.

        The longest come first and go to the worker with the least to read, its queries included: all wait for
        the slowest. Texts are measured in characters, as a worker has no tokens of the others' texts.
        """
        reading = [
            (sum(self._characters(row.query, row.instruction) for row in rows), worker)
            for worker, rows in enumerate(rows_of)
        ]
        heapq.heapify(reading)
        size = {key: self._characters(text, key[1]) for key, text in texts.items()}
        owner = {}
        for key in sorted(size, key=lambda key: size[key], reverse=True):
            amount, owner[key] = reading[0]
            heapq.heapreplace(reading, (amount + size[key], owner[key]))
        owned: list[list[DocumentKey]] = [[] for _ in rows_of]
        for key in texts:
            owned[owner[key]].append(key)
        return owned

    def _characters(self, text: str, instruction: str) -> int:
        """Characters of a text that are read, about."""
        return min(len(instruction) + len(text), CHARACTERS_PER_TOKEN * self._contract.max_length)

    def _tokenize(
        self, texts_and_instructions: Sequence[tuple[str, str]]
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids and pool starts in the order given, of the caches where they have them."""
        found: dict[int, tuple[list[int], int]] = {}
        if self._token_caches:
            keys = token_keys(texts_and_instructions)
            for cache in self._token_caches:
                found |= cache.find(keys)
        missing = [index for index in range(len(texts_and_instructions)) if index not in found]
        # Texts that share an instruction go together.
        for instruction in sorted({texts_and_instructions[index][1] for index in missing}):
            members = [index for index in missing if texts_and_instructions[index][1] == instruction]
            tokenized = self._contract.tokenize(
                self._tokenizer, [texts_and_instructions[index][0] for index in members], instruction or None
            )
            found |= zip(members, zip(tokenized.input_ids, tokenized.pool_starts, strict=True), strict=True)
        ids, starts = zip(*(found[index] for index in range(len(texts_and_instructions))), strict=True)
        return list(ids), list(starts)


def _by_text(position: dict[DocumentKey, int]) -> dict[str, list[int]]:
    """Content hash of each document of the batch -> its positions, one for each instruction."""
    positions_of: dict[str, list[int]] = defaultdict(list)
    for (document_id, _), index in position.items():
        positions_of[document_id].append(index)
    return positions_of


def _queries_answered_by(rows: Sequence[ChosenRow]) -> dict[str, list[int]]:
    """Content hash of each known positive -> positions of the rows that it answers."""
    answered_by: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for document_id, _ in row.positives:
            answered_by[document_id].append(index)
    return answered_by


def _positive_positions(
    row: ChosenRow, position: dict[DocumentKey, int], positions_of: dict[str, list[int]]
) -> list[int]:
    """Positions of the row's positives in the batch, whatever instruction they carry, the target first."""
    target = position[row.target]
    known = [index for document_id, _ in row.positives for index in positions_of.get(document_id, ())]
    return [target, *(index for index in known if index != target)]


def to_training_batch(record: dict[str, Any]) -> TrainingBatch:
    """Tensors of a record made by `Collator.record`."""
    positives = [list(row) for row in record["positives"]]
    num_documents = sum(record["document_counts"])
    in_batch_Q = torch.tensor(record["in_batch"], dtype=torch.bool)
    in_batch_B = torch.tensor(record["in_batch_all"], dtype=torch.bool)
    competing_QB = in_batch_Q.unsqueeze(1) & in_batch_B.unsqueeze(0)
    for query, answered in enumerate(record["answered"]):
        competing_QB[query, answered] = False
    return TrainingBatch(
        step=record["step"],
        packed=pack_ids(record["input_ids"], record["pool_starts"]),
        num_queries=record["num_queries"],
        target_Q=torch.tensor([row[0] for row in positives]),
        allowed_QK=candidate_mask(num_documents, positives, record["negatives"], record["in_batch"]),
        competing_QB=competing_QB,
        document_counts=list(record["document_counts"]),
        query_counts=list(record["query_counts"]),
        source_Q=torch.tensor(record["source"]),
        rows=list(record["row"]),
        teacher_QK=_teacher_scores(num_documents, record["scored"], record["teacher_scores"]),
    )


def _teacher_scores(
    num_documents: int, scored: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]
) -> torch.Tensor | None:
    if not any(len(row) for row in scored):
        return None
    teacher_QK = torch.full((len(scored), num_documents), torch.nan)
    for query, (positions, values) in enumerate(zip(scored, scores, strict=True)):
        teacher_QK[query, list(positions)] = torch.tensor(values, dtype=torch.float32)
    return teacher_QK

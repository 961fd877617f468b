"""One step of the plan, tokenised and cut into lanes, without knowing how many workers there will be.

Rank r of W takes the lanes r, r + W, r + 2 W, ... and needs nothing else: every lane knows how many documents
the others hold, so a rank knows where each vector will stand among the gathered ones. Each distinct document
of the step is in one lane, so it is encoded once.

Row i of the plan is in lane i mod L. With 2 lanes and 5 rows, in which row 1 has the document of row 0:
    lane 0    queries 0, 2, 4    documents d0, d4
    lane 1    queries 1, 3       documents d2, d3
Positions of documents count lane by lane: d0 is 0, d4 is 1, d2 is 2, d3 is 3. Positions of rows are the
plan's. `collate` turns both into positions among the gathered vectors.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.data.choose import ChosenRow, DocumentKey, RowChooser
from rayembed.data.plan import PlannedBatch

_TEXTS = pa.list_(pa.list_(pa.int32()))
LANE_SCHEMA = pa.schema(
    {
        # Token ids of the lane's queries and documents, and how many of each text's first are not pooled.
        "queries": _TEXTS,
        "query_starts": pa.list_(pa.int32()),
        "documents": _TEXTS,
        "document_starts": pa.list_(pa.int32()),
        # Of each query: where its row stands, and positions of documents and rows in the step.
        "source": pa.list_(pa.int16()),
        "row": pa.list_(pa.int64()),
        "positives": _TEXTS,  # known ones that are in the step, the target first
        "negatives": _TEXTS,
        "answered": _TEXTS,  # rows that the target answers
        "teacher_scores": pa.list_(pa.list_(pa.float32())),  # of target and negatives, or none
        # The same texts as a teacher reads them; null where it takes the student's tokens, or there is none.
        "teacher_queries": _TEXTS,
        "teacher_query_starts": pa.list_(pa.int32()),
        "teacher_documents": _TEXTS,
        "teacher_document_starts": pa.list_(pa.int32()),
        # Of the whole step, the same in every lane.
        "document_counts": pa.list_(pa.int32()),  # of each lane
        "in_batch": pa.list_(pa.bool_()),  # of each row: whether it has in-batch negatives
    }
)
Tokens = tuple[list[int], int]
"""Ids of a text, and how many of the first are not pooled."""


@dataclass(frozen=True)
class TextReader:
    """How a model reads texts."""

    contract: Contract
    tokenizer: Any

    def read(self, texts: Sequence[tuple[str, str | None, int | None]]) -> list[Tokens]:
        """Tokens of (text, instruction, most tokens) in order; equal instructions and lengths go together."""
        members: dict[tuple[str | None, int | None], list[int]] = defaultdict(list)
        for index, (_, instruction, limit) in enumerate(texts):
            members[instruction, limit].append(index)
        found: list[Tokens] = [([], 0)] * len(texts)
        for (instruction, limit), indices in members.items():
            tokenized = self.contract.tokenize(
                self.tokenizer, [texts[index][0] for index in indices], instruction or None, limit
            )
            for index, ids, start in zip(indices, tokenized.input_ids, tokenized.pool_starts, strict=True):
                found[index] = ids, start
        return found


class LaneCutter:
    """Fetches the rows of planned batches, tokenises them and cuts them into lanes.

    A teacher that has fixed prompts reads texts with those, any other with the instructions of the rows.
    """

    def __init__(
        self,
        chooser: RowChooser,
        blend: Sequence[SourceConfig],
        reader: TextReader,
        lanes: int,
        teacher: TextReader | None = None,
    ):
        self._chooser = chooser
        self._blend = blend
        self._reader = reader
        self._lanes = lanes
        self._teacher = teacher

    def cut(self, batch: PlannedBatch) -> pa.Table:
        """The lanes of a step, one a row, as `LANE_SCHEMA` says."""
        rows = self._chooser.choose(batch)
        texts = {key: text for row in rows for key, text in row.texts.items()}
        limits = self._document_limits(rows)
        wanted = [  # text, instruction, 1 for documents, most tokens
            *((row.query, row.instruction, 0, self._blend[row.source].query_max_length) for row in rows),
            *((text, key[1], 1, limits[key]) for key, text in texts.items()),
        ]
        prompts = self._reader.contract.prompts or (None, None)
        tokens = self._reader.read(
            [(text, instruction or prompts[side], limit) for text, instruction, side, limit in wanted]
        )
        queries, documents = tokens[: len(rows)], dict(zip(texts, tokens[len(rows) :], strict=True))
        rows_of = [range(lane, len(rows), self._lanes) for lane in range(self._lanes)]
        owned = share_documents(
            [sum(len(queries[row][0]) for row in mine) for mine in rows_of],
            {key: len(ids) for key, (ids, _) in documents.items()},
        )
        by_lane, order = list(chain.from_iterable(owned)), list(chain.from_iterable(rows_of))
        counts, row_counts = ([len(part) for part in parts] for parts in (owned, rows_of))
        placed = _placed(rows, {key: index for index, key in enumerate(by_lane)})
        in_batch = [self._blend[row.source].in_batch_negatives for row in rows]
        columns = {
            **_text_columns("queries", "query_starts", [queries[row] for row in order], row_counts),
            **_text_columns("documents", "document_starts", [documents[key] for key in by_lane], counts),
            "document_counts": pa.array([counts] * self._lanes),
            "in_batch": pa.array([in_batch] * self._lanes),
        }
        if self._teacher:
            fixed = self._teacher.contract.prompts
            read = self._teacher.read(
                [(text, fixed[side] if fixed else instruction, None) for text, instruction, side, _ in wanted]
            )
            taught = dict(zip(texts, read[len(rows) :], strict=True))
            columns |= _text_columns(
                "teacher_queries", "teacher_query_starts", [read[row] for row in order], row_counts
            ) | _text_columns(
                "teacher_documents", "teacher_document_starts", [taught[key] for key in by_lane], counts
            )
        else:
            names = (name for name in LANE_SCHEMA.names if name.startswith("teacher_") and name not in placed)
            columns |= {name: pa.nulls(self._lanes) for name in names}
        for name, values in placed.items():
            kind = LANE_SCHEMA.field(name).type.value_type
            columns[name] = _lists(pa.array([values[row] for row in order], kind), row_counts)
        return pa.table(columns).select(LANE_SCHEMA.names).cast(LANE_SCHEMA)

    def _document_limits(self, rows: Sequence[ChosenRow]) -> dict[DocumentKey, int]:
        """Most tokens of each document: the largest limit of the sources that bring it in this step."""
        limits: dict[DocumentKey, int] = {}
        for row in rows:
            limit = self._blend[row.source].document_max_length or self._reader.contract.max_length
            for key in row.texts:
                limits[key] = max(limit, limits.get(key, 0))
        return limits


def share_documents(loads: Sequence[int], tokens: dict[DocumentKey, int]) -> list[list[DocumentKey]]:
    """Documents of each lane, in the order of `tokens`.

    The longest come first and go to the lane with the least to read, because all wait for the slowest.

    Args:
        loads: tokens of each lane's queries.
        tokens: of each document.
    """
    reading = [(load, lane) for lane, load in enumerate(loads)]
    heapq.heapify(reading)
    owner = {}
    for key in sorted(tokens, key=lambda key: tokens[key], reverse=True):
        amount, owner[key] = reading[0]
        heapq.heapreplace(reading, (amount + tokens[key], owner[key]))
    owned: list[list[DocumentKey]] = [[] for _ in loads]
    for key in tokens:
        owned[owner[key]].append(key)
    return owned


def _text_columns(
    name: str, starts: str, texts: Sequence[Tokens], counts: Sequence[int]
) -> dict[str, pa.Array]:
    """Ids of texts and their first pooled positions, so many of the texts for each lane."""
    flat = np.fromiter(chain.from_iterable(ids for ids, _ in texts), np.int32)
    ids = _lists(pa.array(flat), [len(ids) for ids, _ in texts])
    return {name: _lists(ids, counts), starts: _lists(pa.array([start for _, start in texts]), counts)}


def _lists(values: pa.Array, counts: Sequence[int]) -> pa.ListArray:
    """The next so many values for each list."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), values)


def _placed(rows: Sequence[ChosenRow], position: dict[DocumentKey, int]) -> dict[str, list[Any]]:
    """Columns of `LANE_SCHEMA` that hold something of each query, for all rows in the order of the plan."""
    positions_of: dict[str, list[int]] = defaultdict(list)  # a text has one for each instruction
    for (document_id, _), index in position.items():
        positions_of[document_id].append(index)
    answered_by: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for document_id, _ in row.positives:
            answered_by[document_id].append(index)

    def positives(row: ChosenRow) -> list[int]:
        target = position[row.target]
        known = [index for document_id, _ in row.positives for index in positions_of.get(document_id, ())]
        return [target, *(index for index in known if index != target)]

    return {
        "source": [row.source for row in rows],
        "row": [row.number for row in rows],
        "positives": [positives(row) for row in rows],
        "negatives": [[position[key] for key in row.negatives] for row in rows],
        "answered": [answered_by[row.target[0]] for row in rows],
        "teacher_scores": [
            [row.teacher_scores[key] for key in (row.target, *row.negatives)] if row.teacher_scores else []
            for row in rows
        ],
    }

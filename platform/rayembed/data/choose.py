"""The rows of a planned batch, each with the documents and the instruction that are drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from rayembed.common.errors import DataError
from rayembed.config.blend import SourceConfig
from rayembed.data.classes import Classes
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows
from rayembed.records.schema import document_id

DocumentKey = tuple[str, str]
"""Content hash of a document and the instruction in front of it ("" for none): what makes its vector."""

_COLUMNS = ("query", "positives", "negatives", "document_ids", "instruction", "teacher_scores")


@dataclass(frozen=True)
class ChosenRow:
    """A row with its documents picked: target, known positives, negatives, texts, teacher's scores.

    `number` is the row's position in its source.
    """

    source: int
    number: int
    query: str
    instruction: str
    target: DocumentKey
    positives: list[DocumentKey]
    negatives: list[DocumentKey]
    texts: dict[DocumentKey, str]
    teacher_scores: dict[DocumentKey, float]


class RowChooser:
    """Joins the plan with the rows of the sources; seed, step and row alone decide what is drawn."""

    def __init__(self, sources: Sequence[PreparedRows], blend: Sequence[SourceConfig], *, seed: int):
        self._sources = sources
        self._blend = blend
        self._seed = seed

    def choose(self, batch: PlannedBatch) -> list[ChosenRow]:
        """The rows of a batch in the order of the plan."""
        generators = [
            np.random.default_rng([self._seed, batch.step, source, number])
            for source, number in batch.pairs()
        ]
        values: list[dict[str, Any]] = [{}] * len(batch.rows)
        for source in np.unique(batch.sources).tolist():
            [places] = np.nonzero(batch.sources == source)
            rows, numbers = self._sources[source], batch.rows[places]
            found = rows.take(numbers, _COLUMNS)
            if (classes := rows.classes) is not None:
                negatives = self._blend[source].negatives_per_query
                drawn = [
                    classes.draw(number, negatives, generators[place])
                    for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
                ]
                found = _with_documents(found, rows, classes, drawn)
            for place, row in zip(places.tolist(), found, strict=True):
                values[place] = row
        return [
            self._draw(source, number, row, generator)
            for (source, number), row, generator in zip(batch.pairs(), values, generators, strict=True)
        ]

    def _draw(
        self, source: int, number: int, values: dict[str, Any], generator: np.random.Generator
    ) -> ChosenRow:
        entry = self._blend[source]
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
        scores = values["teacher_scores"]
        if scores and len(scores) != len(keys):
            raise DataError(
                f"source {entry.source}, row {number} has {len(scores)} teacher_scores, not {len(keys)}; "
                "give one for each positive and negative, in the order of document_ids"
            )
        return ChosenRow(
            source=source,
            number=number,
            query=values["query"],
            instruction=instruction,
            target=keys[target],
            positives=keys[:num_positives],
            negatives=[keys[index] for index in picked],
            texts={keys[index]: documents[index] for index in used},
            teacher_scores={keys[index]: scores[index] for index in used} if scores else {},
        )


def _with_documents(
    found: Sequence[dict[str, Any]], rows: PreparedRows, classes: Classes, drawn: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Rows with what `Classes.draw` drew for each: a positive and negatives."""
    numbers = np.fromiter(chain.from_iterable(drawn), np.int64)
    if classes.texts is None:
        others = ((row["query"], row["query_id"]) for row in rows.take(numbers, ("query", "query_id")))
    else:
        others = ((text, document_id(text)) for text in map(classes.texts.__getitem__, numbers.tolist()))
    completed = []
    for row, of_row in zip(found, drawn, strict=True):
        texts, ids = zip(*islice(others, len(of_row)), strict=True)
        completed.append(row | {"positives": texts[:1], "negatives": texts[1:], "document_ids": ids})
    return completed

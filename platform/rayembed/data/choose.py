"""The rows of a planned batch, each with the documents and the instruction that are drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayembed.common.errors import DataError
from rayembed.config.blend import SourceConfig
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows

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
        values: list[dict[str, Any]] = [{}] * len(batch.rows)
        for source in np.unique(batch.sources).tolist():
            [places] = np.nonzero(batch.sources == source)
            found = self._sources[source].take(batch.rows[places], _COLUMNS)
            for place, row in zip(places.tolist(), found, strict=True):
                values[place] = row
        return [
            self._draw(batch.step, source, number, row)
            for (source, number), row in zip(batch.pairs(), values, strict=True)
        ]

    def _draw(self, step: int, source: int, number: int, values: dict[str, Any]) -> ChosenRow:
        entry = self._blend[source]
        generator = np.random.default_rng([self._seed, step, source, number])
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

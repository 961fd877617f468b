"""Fixed splits: a group of related rows falls into one split, always the same."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayembed.records.schema import Kind, label_row, pair_row, score_row

Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def split_of(group: str) -> Split:
    """Split of a group key by its SHA-256 modulo 10: 0 is test, 1 is dev, the other eight are train."""
    bucket = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "dev"}.get(bucket, "train")  # type: ignore[return-value]


@dataclass(frozen=True)
class PairExample:
    """A query and its relevant document; `group` decides its split; see `pair_row` for `cluster`."""

    group: str
    query: str
    positive: str
    cluster: str | None = None

    @property
    def split(self) -> Split:
        """Split of the group."""
        return split_of(self.group)

    def row(self, dataset: str, task_type: str) -> dict:
        """Row of PAIR_SCHEMA."""
        return pair_row(
            self.query, [self.positive], [], dataset=dataset, task_type=task_type, cluster=self.cluster
        )


@dataclass(frozen=True)
class LabelExample:
    """A text and its class; `group` decides the split."""

    group: str
    text: str
    label: str

    @property
    def split(self) -> Split:
        """Split of the group."""
        return split_of(self.group)

    def row(self, dataset: str, task_type: str) -> dict:
        """Row of LABEL_SCHEMA."""
        return label_row(self.text, self.label, dataset=dataset, task_type=task_type, group=self.group)


@dataclass(frozen=True)
class ScoreExample:
    """Two texts with a human score; always held out, because such sets are too small to train on."""

    sentence1: str
    sentence2: str
    score: float
    split: Split = "test"

    def row(self, dataset: str, task_type: str) -> dict:
        """Row of SCORE_SCHEMA."""
        return score_row(self.sentence1, self.sentence2, self.score, dataset=dataset, task_type=task_type)


Example = PairExample | LabelExample | ScoreExample


Reader = Callable[[Path], Iterable[Example]]


@dataclass(frozen=True)
class BuiltInSource:
    """A source that `rayembed data build NAME` makes.

    `read` gets a folder for downloads and yields the examples in a fixed order. `version` is raised whenever
    the same input would give other rows, so that stored copies are built again. `terms` says in a
    sentence what the licence means for the rows. `missing` says why the source cannot be made on this
    machine, None where it can.
    """

    name: str
    title: str
    kind: Kind
    task_type: str
    origin: str
    licence: str
    terms: str
    requires: str
    read: Reader
    version: int = 1
    missing: Callable[[], str | None] = lambda: None

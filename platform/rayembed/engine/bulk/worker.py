"""What embeds a shard: the code that runs in an actor."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rayembed.common.errors import DataError, UserError
from rayembed.engine.bulk.inputs import InputRows
from rayembed.engine.bulk.output import Statistics, shard_path, vector_column, write_shard
from rayembed.engine.bulk.reading import BadRows, Rows, read_rows
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import Quantisation, quantise
from rayembed.model.configuration import Precision

logger = logging.getLogger(__name__)


ATTEMPTS = 3


@dataclass(frozen=True)
class Work:
    """All that an actor needs to know to embed any shard."""

    checkpoint: Path
    output: Path
    rows: InputRows
    text_column: str
    kept: pa.Schema
    shard_rows: int
    instruction: str | None
    dimensions: int
    vectors: Quantisation
    bad_rows: BadRows
    precision: Precision

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.rows) // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, len(self.rows))


class ShardWorker:
    """Embeds shards; the model is loaded with the first one.

    Args:
        work: the job.
        threads: processor threads of torch; None leaves its choice.
    """

    def __init__(self, work: Work, threads: int | None = None):
        self.work = work
        if threads is not None:
            torch.set_num_threads(threads)

    @cached_property
    def engine(self) -> Engine:
        """The engine."""
        return Engine.load(self.work.checkpoint, precision=self.work.precision)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed shard number `row["item"]` and write its file.

        Returns what the shard is made of, as JSON, or what went wrong: an error must not end the work on
        other shards, unless the user has to act (`refused`).
        """
        shard = int(row["item"])
        outcome = {"shard": shard, "statistics": "", "problem": "", "refused": False}
        with _counted_starts(shard_path(self.work.output, shard)) as starts:
            if starts > ATTEMPTS:
                return outcome | {"problem": f"its actor died {ATTEMPTS} times"}
            try:
                return outcome | {"statistics": json.dumps(asdict(self.embed(shard)))}
            except UserError as error:
                return outcome | {"problem": str(error), "refused": True}
            except Exception as error:  # it is tried again and then named with this reason
                logger.exception("shard %d failed", shard)
                return outcome | {"problem": f"{type(error).__name__}: {error}"}

    def embed(self, shard: int) -> Statistics:
        """Embed one shard and write its file.

        Raises:
            UserError: a row is bad and the policy is `error`, or the request does not fit the model.
        """
        work = self.work
        start, stop = work.span(shard)
        rows = read_rows(work.rows, start, stop, work.text_column, work.kept)
        if rows.problems and work.bad_rows == "error":
            self._refuse(start, rows)
        texts = [text for position, text in enumerate(rows.texts) if position not in rows.problems]
        encoded = self.engine.encode(texts, instruction=work.instruction, dimensions=work.dimensions)
        columns, missing = rows.columns, sorted(rows.problems)
        if work.bad_rows == "skip":
            columns = columns.filter(
                pa.array([position not in rows.problems for position in range(len(rows.texts))])
            )
            missing = []
        statistics = Statistics(
            rows=stop - start,
            vectors=len(texts),
            tokens=sum(encoded.token_counts),
            truncated=sum(encoded.truncated),
            bad_rows=dict(Counter(rows.problems.values())),
        )
        vectors = vector_column(quantise(encoded.vectors, work.vectors), columns.num_rows, missing)
        write_shard(shard_path(work.output, shard), columns, vectors, statistics)
        return statistics

    def _refuse(self, start: int, rows: Rows) -> None:
        position, problem = next(iter(rows.problems.items()))
        raise DataError(
            f"{self.work.rows.place(start + position)}: {problem}; correct it, or choose to skip bad rows "
            "or to give them a null vector"
        )


@contextlib.contextmanager
def _counted_starts(shard: Path) -> Iterator[int]:
    """How many times the shard was begun and not ended, this one included.

    Ray gives the shard of a dead actor to the next one for ever; one that kills them all has to be noticed.
    """
    counter = shard.with_name(f".{shard.name}.starts")
    counter.parent.mkdir(parents=True, exist_ok=True)
    with counter.open("ab") as stream:
        stream.write(b".")
    starts = counter.stat().st_size
    yield starts
    if starts <= ATTEMPTS:
        counter.unlink(missing_ok=True)

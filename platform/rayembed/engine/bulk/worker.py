"""What embeds a shard: the code that runs in an actor."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.common.settings import Precision
from rayembed.engine.bulk.inputs import BadRows, InputRows, Rows, read_rows
from rayembed.engine.bulk.output import ShardStatistics, shard_path, vector_column, write_shard
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import Quantisation, quantise


@dataclass(frozen=True)
class EmbeddingWork:
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
    """Embeds shards; the model is loaded with the first one."""

    def __init__(self, work: EmbeddingWork):
        self.work = work

    @cached_property
    def engine(self) -> Engine:
        """The engine."""
        return Engine.load(self.work.checkpoint, precision=self.work.precision)

    def __call__(self, shard: int) -> tuple[int, ShardStatistics]:
        """Embed a shard and write its file; returns its number and what it is made of."""
        return shard, self.embed(shard)

    def embed(self, shard: int) -> ShardStatistics:
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
        statistics = ShardStatistics(
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

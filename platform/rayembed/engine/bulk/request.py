"""From a request to the work of a job, and what an actor does for a shard of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from rayembed.common.errors import DataError, RequestError
from rayembed.common.paths import is_stored, resolve
from rayembed.common.settings import Precision
from rayembed.contract import Contract
from rayembed.contract.instructions import Side, chosen_instruction
from rayembed.engine.bulk.inputs import InputRows, find_files, index_files
from rayembed.engine.bulk.output import (
    VECTOR_COLUMN,
    ShardStatistics,
    shard_path,
    vector_column,
    write_shard,
)
from rayembed.engine.bulk.rows import ROW_FIELD, BadRows, Rows, kept_schema, read_rows
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import Quantisation, quantise
from rayembed.model import checkpoint as checkpoints

MOST_SHARD_ROWS = 8192  # thousands, so that the engine can sort by length
LEAST_SHARD_ROWS = 1024
_WANTED_SHARDS = 64


@dataclass(frozen=True)
class EmbedRequest:
    """Which texts to embed, and how.

    On several nodes checkpoint and output lie on storage that all of them mount; files may be in a store.

    Attributes:
        files: a file of any format that training reads, a folder or a glob of them, or the URI of one.
        checkpoint: checkpoint folder.
        output: folder of the vectors and their manifest.
        text_column: column of the texts.
        keep: further columns to copy next to the vectors.
        instruction: what the texts are for, in words; None for documents.
        task: name of an instruction that the model was trained with, in place of words.
        side: of the task, whether the texts are its queries or its documents.
        dimensions: cut the vectors to this width and renormalise; None keeps the full width.
        vectors: number format of the vectors (see `quantise`).
        bad_rows: what to do about a row without a usable text: stop, leave it out, or give it a null vector.
        shard_rows: rows of a shard; None takes 1,024 to 8,192, by the size of the input.
        precision: number format of the computation; auto takes bf16 where the first worker's processor has
            it, and goes on with what an earlier run took.
    """

    files: str | Path
    checkpoint: str | Path
    output: str | Path
    text_column: str = "text"
    keep: Sequence[str] = ()
    instruction: str | None = None
    task: str | None = None
    side: Side = "query"
    dimensions: int | None = None
    vectors: Quantisation = "float32"
    bad_rows: BadRows = "error"
    shard_rows: int | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, known in (("vectors", Quantisation), ("bad_rows", BadRows), ("precision", Precision)):
            if (value := getattr(self, name)) not in get_args(known):
                raise RequestError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
        if self.shard_rows is not None and self.shard_rows < 1:
            raise RequestError(f"shard_rows must be at least 1, not {self.shard_rows}")
        for name in {ROW_FIELD.name, VECTOR_COLUMN} & set(self.keep):
            raise RequestError(
                f"the output has a column {name!r} of its own; rename that of the input to keep it"
            )


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


def plan_work(
    request: EmbedRequest, known_files: Sequence[dict[str, Any]] = ()
) -> tuple[EmbeddingWork, dict[str, Any]]:
    """Look at checkpoint and input; returns the work and the manifest of its output.

    Args:
        request: the request.
        known_files: descriptions of the input from an earlier run.

    Raises:
        UserError: checkpoint or input cannot be read, or do not have what the request names.
    """
    given = resolve(request.files)
    if (given.is_dir() or is_stored(given)) and resolve(request.output).is_relative_to(given):
        raise RequestError(
            f"the output {resolve(request.output)} is inside the input folder {given}, and the next run "
            "would read it; choose another place"
        )
    folder = resolve(request.checkpoint)
    description = checkpoints.read_manifest(folder)
    if request.dimensions is not None and not 1 <= request.dimensions <= description["dimensions"]:
        raise RequestError(
            f"dimensions must be between 1 and {description['dimensions']}, not {request.dimensions}"
        )
    dimensions = request.dimensions or description["dimensions"]
    example = quantise(np.ones((1, dimensions), np.float32), request.vectors)  # refuses bits of another width
    contract = Contract.load(folder)
    keep = tuple(dict.fromkeys(request.keep))
    rows = index_files(find_files(request.files), known_files)
    work = EmbeddingWork(
        checkpoint=folder,
        output=resolve(request.output),
        rows=rows,
        text_column=request.text_column,
        kept=kept_schema(rows, request.text_column, keep),
        shard_rows=request.shard_rows or _default_shard_rows(len(rows)),
        instruction=chosen_instruction(contract, request.instruction, request.task, request.side),
        dimensions=dimensions,
        vectors=request.vectors,
        bad_rows=request.bad_rows,
        precision=request.precision,
    )
    settings = {
        "checkpoint": description["digest"],
        "instruction": work.instruction,
        "dimensions": work.dimensions,
        "vectors": work.vectors,
        "precision": work.precision,
        "text_column": work.text_column,
        "keep": {field.name: str(field.type) for field in work.kept},
        "bad_rows": work.bad_rows,
        "shard_rows": work.shard_rows,
    }
    manifest = {
        "status": "running",
        "settings": settings,
        "checkpoint": str(folder),
        "contract": contract.model_dump(mode="json"),
        "shards": work.shards,
        "bytes_per_vector": example.nbytes,
        "input": [file.description() for file in rows.files],
        "versions": checkpoints.installed_versions(),
    }
    return work, manifest


class ShardWorker:
    """Embeds shards; threads read, tokenise and write theirs while another computes."""

    def __init__(self, work: EmbeddingWork):
        self.work = work
        self.engine = Engine.load(work.checkpoint, precision=work.precision)

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
        quantised = quantise(encoded.vectors, work.vectors, self.engine.contract.vector_ranges)
        vectors = vector_column(quantised, columns.num_rows, missing)
        write_shard(shard_path(work.output, shard), columns, vectors, statistics)
        return statistics

    def _refuse(self, start: int, rows: Rows) -> None:
        position, problem = next(iter(rows.problems.items()))
        raise DataError(
            f"{self.work.rows.place(start + position)}: {problem}; correct it, or choose to skip bad rows "
            "or to give them a null vector"
        )


def _default_shard_rows(rows: int) -> int:
    return min(max(-(-rows // _WANTED_SHARDS), LEAST_SHARD_ROWS), MOST_SHARD_ROWS)

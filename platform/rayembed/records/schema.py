"""The row layouts of the platform and the checks a table must pass.

A source is a folder of Parquet files, `train.parquet`, `dev.parquet` and `test.parquet` or numbered parts of
them, in one of these layouts:

- pairs: a query with its positives and, where known, hard negatives and the cluster whose rows answer each
  other (a class, a set of duplicates);
- labels: a text with its class;
- scores: two texts with a human similarity score;
- nli: a premise and a hypothesis with "entailment", "neutral" or "contradiction";
- duplicates: two questions with "1" where they ask the same and "0" where they do not.
"""

import hashlib
from collections.abc import Iterable, Sequence

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.config.data import SourceKind

Kind = SourceKind

PAIR_SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "positives": pa.list_(pa.string()),
        "negatives": pa.list_(pa.string()),
        "dataset": pa.string(),
        "task_type": pa.string(),
        "query_id": pa.string(),
        "document_ids": pa.list_(pa.string()),
        "cluster": pa.string(),
        "teacher_scores": pa.list_(pa.float32()),  # one for each of document_ids
        "instruction": pa.string(),  # of this row, in place of the blend's
    }
)
OPTIONAL_COLUMNS = ("cluster", "teacher_scores", "instruction")

LABEL_SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "label": pa.string(),
        "dataset": pa.string(),
        "task_type": pa.string(),
        "text_id": pa.string(),
        "group": pa.string(),
    }
)

SCORE_SCHEMA = pa.schema(
    {
        "sentence1": pa.string(),
        "sentence2": pa.string(),
        "score": pa.float64(),
        "dataset": pa.string(),
        "task_type": pa.string(),
    }
)

SENTENCE_LABEL_SCHEMA = pa.schema(
    {
        "sentence1": pa.string(),
        "sentence2": pa.string(),
        "label": pa.string(),
        "dataset": pa.string(),
        "task_type": pa.string(),
    }
)

SCHEMAS: dict[Kind, pa.Schema] = {
    "pairs": PAIR_SCHEMA,
    "labels": LABEL_SCHEMA,
    "scores": SCORE_SCHEMA,
    "nli": SENTENCE_LABEL_SCHEMA,
    "duplicates": SENTENCE_LABEL_SCHEMA,
}


def document_id(text: str) -> str:
    """Content hash that names a text in every source: the first 16 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pair_row(
    query: str,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    dataset: str,
    task_type: str,
    cluster: str | None = None,
    teacher_scores: Sequence[float] | None = None,
    instruction: str | None = None,
) -> dict:
    """One row of PAIR_SCHEMA; ids are derived from the texts, positives before negatives.

    Rows of one `cluster` answer each other's queries, so they never share a batch with in-batch negatives. A
    row with an `instruction` is trained with it, others with that of their entry in the blend.
    """
    return {
        "query": query,
        "positives": list(positives),
        "negatives": list(negatives),
        "dataset": dataset,
        "task_type": task_type,
        "query_id": document_id(query),
        "document_ids": [document_id(text) for text in (*positives, *negatives)],
        "cluster": cluster,
        "teacher_scores": teacher_scores,
        "instruction": instruction,
    }


def label_row(text: str, label: str, *, dataset: str, task_type: str, group: str | None = None) -> dict:
    """One row of LABEL_SCHEMA; a text without a group is a group of its own."""
    text_id = document_id(text)
    return {
        "text": text,
        "label": label,
        "dataset": dataset,
        "task_type": task_type,
        "text_id": text_id,
        "group": text_id if group is None else group,
    }


def score_row(sentence1: str, sentence2: str, score: float, *, dataset: str, task_type: str) -> dict:
    """One row of SCORE_SCHEMA."""
    return {
        "sentence1": sentence1,
        "sentence2": sentence2,
        "score": score,
        "dataset": dataset,
        "task_type": task_type,
    }


def sentence_label_row(sentence1: str, sentence2: str, label: str, *, dataset: str, task_type: str) -> dict:
    """One row of SENTENCE_LABEL_SCHEMA."""
    return {
        "sentence1": sentence1,
        "sentence2": sentence2,
        "label": label,
        "dataset": dataset,
        "task_type": task_type,
    }


def row_texts(row: dict) -> list[str]:
    """All texts of a row of any layout, the query or first sentence before the others; labels are none."""
    if "query" in row:
        return [row["query"], *row["positives"], *row["negatives"]]
    return [row["text"]] if "text" in row else [row["sentence1"], row["sentence2"]]


def to_table(rows: Iterable[dict], kind: Kind) -> pa.Table:
    """Rows of one layout as an Arrow table."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS[kind])


def check_table(table: pa.Table, kind: Kind, origin: str) -> pa.Table:
    """Return `table` with the columns and types of its layout, in order; optional ones may be missing.

    Raises DataError, naming `origin`, for a missing column, a type that cannot be read as the expected one,
    or no rows.
    """
    schema = SCHEMAS[kind]
    for name in OPTIONAL_COLUMNS:
        if name in schema.names and name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{origin} lacks the columns {missing} of a {kind} source; it has {table.column_names}"
        )
    if table.num_rows == 0:
        raise DataError(f"{origin} has no rows; build the source again or supply a file that is not empty")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{origin} has a column of another type than a {kind} source ({error}); expected {_types(schema)}"
        ) from error


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)

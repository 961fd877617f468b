"""Single texts out of any source, for stages that learn from texts alone."""

from typing import Literal

import pyarrow as pa

from rayembed.records.schema import pair_row, to_table


def text_rows(table: pa.Table, side: Literal["documents", "queries"]) -> pa.Table:
    """Each distinct text once, as a pair with itself.

    Args:
        table: rows of a pair or label source.
        side: which texts of a pair source: its queries, or its positives.
    """
    if "text" in table.column_names:
        texts = table["text"].to_pylist()
    elif side == "queries":
        texts = table["query"].to_pylist()
    else:
        texts = [text for positives in table["positives"].to_pylist() for text in positives]
    dataset, task_type = table["dataset"][0].as_py(), table["task_type"][0].as_py()
    rows = (pair_row(text, [text], [], dataset=dataset, task_type=task_type) for text in dict.fromkeys(texts))
    return to_table(rows, "pairs")

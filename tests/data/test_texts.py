"""Single texts of a source."""

import pyarrow as pa

from rayembed.data.contrastive import text_rows
from tests.training.sources import write_source


def test_texts_of_a_source_once_each(tmp_path):
    path = write_source(tmp_path / "one.arrow", rows=5)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    doubled = table.take([0, 1, 1, 2])
    rows = text_rows(doubled, "documents").to_pylist()
    assert [row["query"] for row in rows] == [
        f"about {word} number {n}" for n, word in enumerate(["sun", "rain", "snow"])
    ]
    assert all(row["positives"] == [row["query"]] and row["negatives"] == [] for row in rows)
    assert text_rows(doubled, "queries")["query"][1].as_py() == "rain 1?"

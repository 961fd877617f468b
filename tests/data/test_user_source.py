import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.data.schema import LABEL_SCHEMA, PAIR_SCHEMA, SCORE_SCHEMA
from rayembed.data.user_source import load_user_source
from rayembed.errors import DataError

GOOD = {"query": "q", "positive": "p"}


def write(path, records):
    path.write_text(
        "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    )
    return path


def load(path, kind="pairs", **options):
    return load_user_source(path, kind, "mine", "retrieval", **options)


def test_simple_pair_layouts_are_one_schema(tmp_path):
    write(
        tmp_path / "a.jsonl",
        [
            {"query": "q1", "pos": ["p1", "p2"], "neg": ["n1"]},
            {"query": "q2", "positive": "p3", "cluster": 4},
        ],
    )
    pq.write_table(pa.Table.from_pylist([{"query": "q3", "positives": ["p\u2028"]}]), tmp_path / "b.parquet")
    (tmp_path / "notes.md").write_text("not data")
    table = load(tmp_path)
    assert table.schema == PAIR_SCHEMA
    assert table["positives"].to_pylist() == [["p1", "p2"], ["p3"], ["p\u2028"]]
    assert table["negatives"].to_pylist() == [["n1"], [], []]
    assert [len(ids) for ids in table["document_ids"].to_pylist()] == [3, 1, 1]
    assert table["cluster"].to_pylist() == [None, "4", None]
    assert set(table["dataset"].to_pylist()) == {"mine"}


def test_labels_and_scores(tmp_path):
    labels = load(
        write(
            tmp_path / "labels.jsonl", [{"text": "t", "label": 3}, {"text": "u", "label": "x", "group": 7}]
        ),
        "labels",
    )
    assert labels.schema == LABEL_SCHEMA
    assert labels["label"].to_pylist() == ["3", "x"]
    assert labels["group"][1].as_py() == "7"
    scores = load(
        write(tmp_path / "scores.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 4}]), "scores"
    )
    assert scores.schema == SCORE_SCHEMA


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{not json", "not a JSON object"),
        ({"query": " ", "positive": "p"}, "empty query"),
        ({"query": None, "positive": "p"}, "empty query"),
        ({"query": ["q"], "positive": "p"}, "query is not a text"),
        ({"query": "\ud83d", "positive": "p"}, "query has half a Unicode character"),
        ({"query": "q", "positive": []}, "no positive"),
        ({"query": "q", "positive": [3]}, "positive is not a text"),
        ({"query": "q", "positive": 3}, "positives are neither a text nor a list"),
        ({"query": "q", "positive": "p", "neg": ["", "n"]}, "empty negative"),
        ({"query": "q", "positive": "p", "neg": ["p"]}, "a negative that is also a positive"),
    ],
)
def test_bad_rows_are_counted_with_reason_and_place(tmp_path, caplog, record, reason):
    path = write(tmp_path / "a.jsonl", [GOOD, record, GOOD])
    with pytest.raises(
        DataError, match=rf"1 of 3 rows are bad: 1 x {reason} \(first in a.jsonl, row 2\); at most 1.0%"
    ):
        load(path)
    with caplog.at_level(logging.WARNING):
        assert load(path, largest_bad_share=0.5).num_rows == 2
    assert f"1 x {reason}" in caplog.text


@pytest.mark.parametrize(
    ("records", "kind", "reason"),
    [
        ([{"text": "", "label": "a"}], "labels", "empty text"),
        ([{"text": "t", "label": None}], "labels", "empty label"),
        ([{"text": "t", "label": "a", "group": [1]}], "labels", "group is not a text"),
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}], "scores", "score is not a number"),
        ([{"sentence1": "a", "sentence2": "b", "score": float("nan")}], "scores", "score is not a number"),
    ],
)
def test_bad_label_and_score_rows(tmp_path, records, kind, reason):
    with pytest.raises(DataError, match=reason):
        load(write(tmp_path / "a.jsonl", records), kind)


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="absent does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no file that ends in \.json, \.jsonl, \.parquet"):
        load(tmp_path)
    with pytest.raises(DataError, match="has no rows"):
        load(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match=r"no column positives or positive or pos.*it has query, answer"):
        load(write(tmp_path / "columns.jsonl", [{"query": "q", "answer": "a"}]))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "columns.parquet")
    with pytest.raises(DataError, match="no column label"):
        load(tmp_path / "columns.parquet", "labels")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "columns.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        load(tmp_path / "cut.parquet", "labels")
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "latin.jsonl")

import pyarrow as pa
import pytest

from rayembed.common.errors import DataError
from rayembed.data.sources.base import split_of
from rayembed.records.schema import PAIR_SCHEMA, check_table, document_id, label_row, pair_row, to_table


def pair(**changes):
    return pair_row("q", ["p"], ["n"], dataset="d", task_type="retrieval") | changes


def test_ids_are_content_hashes_of_positives_then_negatives():
    assert document_id("abc") == "ba7816bf8f01cfea"
    assert pair()["document_ids"] == [document_id("p"), document_id("n")]


def test_a_text_without_group_is_its_own_group():
    row = label_row("text", "a", dataset="d", task_type="classification")
    assert row["group"] == row["text_id"] == document_id("text")


def test_columns_are_ordered_and_cast():
    table = pa.Table.from_pylist([pair()]).append_column("extra", [["x"]])
    wide = table.set_column(0, "query", table["query"].cast(pa.large_string()))
    assert check_table(wide, "pairs", "here").schema == PAIR_SCHEMA


def test_a_table_without_the_optional_cluster_gets_an_empty_one():
    table = check_table(pa.Table.from_pylist([pair()]).drop_columns(["cluster"]), "pairs", "here")
    assert table.schema == PAIR_SCHEMA
    assert table["cluster"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (to_table([pair()], "pairs").drop_columns(["positives"]), r"here lacks the columns \['positives'\]"),
        (to_table([], "pairs"), "here has no rows"),
        (pa.Table.from_pylist([pair(positives=3)]), "another type"),
    ],
)
def test_a_table_of_another_layout_is_refused(table, message):
    with pytest.raises(DataError, match=message):
        check_table(table, "pairs", "here")


def test_splits_never_move():
    groups = {"ast": "test", "bz2": "dev", "json": "train"}
    assert {group: split_of(group) for group in groups} == groups


def test_a_tenth_of_the_groups_is_test_and_a_tenth_dev():
    splits = [split_of(str(group)) for group in range(2000)]
    assert 150 < splits.count("test") < 250
    assert 150 < splits.count("dev") < 250

import logging

import pytest

from rayembed.common.errors import DataError
from rayembed.data.labels import example_based_rows, label_based_rows
from rayembed.records.schema import label_row, to_table


def labels(*pairs):
    rows = [label_row(text, label, dataset="d", task_type="classification") for text, label in pairs]
    return to_table(rows, "labels")


TEXTS = labels(*((f"{label}{number}", label) for label in "abc" for number in range(6)))


def test_examples_positive_shares_the_class_and_negatives_do_not():
    rows = example_based_rows(TEXTS, negatives_per_query=4, seed=1).to_pylist()
    assert len(rows) == 18
    for row in rows:
        label = row["query"][0]
        assert row["positives"][0][0] == label
        assert row["positives"][0] != row["query"]
        assert len(set(row["negatives"])) == 4
        assert label not in {text[0] for text in row["negatives"]}
        assert row["cluster"] == label
    assert len({row["positives"][0] for row in rows}) > 6


def test_rows_depend_on_the_seed_alone():
    assert example_based_rows(TEXTS, negatives_per_query=2, seed=1) == example_based_rows(
        TEXTS, negatives_per_query=2, seed=1
    )
    assert example_based_rows(TEXTS, negatives_per_query=2, seed=1) != example_based_rows(
        TEXTS, negatives_per_query=2, seed=2
    )


def test_a_class_of_one_text_gives_no_row_but_negatives(caplog):
    table = labels(("a1", "a"), ("a2", "a"), ("a2", "a"), ("b1", "b"), ("both", "a"), ("both", "b"))
    with caplog.at_level(logging.WARNING):
        rows = example_based_rows(table, negatives_per_query=3, seed=0).to_pylist()
    assert [(row["query"], row["positives"], row["negatives"]) for row in rows] == [
        ("a1", ["a2"], ["b1"]),
        ("a2", ["a1"], ["b1"]),
    ]
    assert "1 classes have one text" in caplog.text
    assert "1 texts have two classes" in caplog.text


def test_label_texts_are_the_documents():
    names = {"a": "first", "b": "second", "c": "third"}
    rows = label_based_rows(TEXTS, label_texts=names, negatives_per_query=5, seed=0).to_pylist()
    assert rows[0]["positives"] == ["first"]
    assert sorted(rows[0]["negatives"]) == ["second", "third"]
    plain = label_based_rows(TEXTS, negatives_per_query=1, seed=0).to_pylist()
    assert plain[0]["positives"] == ["a"]
    assert len(plain[0]["negatives"]) == 1


def test_what_cannot_be_contrasted_is_refused():
    with pytest.raises(DataError, match=r"has 1 class\(es\) \(a\)"):
        example_based_rows(labels(("a1", "a"), ("a2", "a")), negatives_per_query=1, seed=0)
    with pytest.raises(DataError, match="no class has two texts"):
        example_based_rows(labels(("a1", "a"), ("b1", "b")), negatives_per_query=1, seed=0)
    with pytest.raises(DataError, match=r"lacks the labels \['c'\]"):
        label_based_rows(TEXTS, label_texts={"a": "x", "b": "y"}, negatives_per_query=1, seed=0)

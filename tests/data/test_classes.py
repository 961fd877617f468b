"""Labelled rows: which are kept, and what steps draw for them."""

import logging

import numpy as np
import pytest

from rayembed.common.errors import DataError
from rayembed.config.blend import SourceConfig
from rayembed.data.choose import RowChooser
from rayembed.data.classes import Classes, write_classes
from rayembed.data.distinct import distinct_texts, group_by_class
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows
from rayembed.records.schema import document_id, pair_row, to_table


def labelled(*pairs) -> PreparedRows:
    rows = [
        pair_row(text, [], [], dataset="d", task_type="classification", cluster=label)
        for text, label in pairs
    ]
    return PreparedRows(to_table(rows, "pairs").to_batches(max_chunksize=4))


TEXTS = [(f"{label}{number}", label) for number in range(6) for label in "abc"]


def grouped(rows: PreparedRows, folder, labels="example", label_texts=None) -> PreparedRows:
    """Rows that are all kept, with their classes."""
    grouping = group_by_class(rows, "source", labels, label_texts)
    assert grouping.keep_R.all()
    write_classes(folder, grouping.of_row)
    return PreparedRows(rows.batches(), Classes.open(folder, grouping.texts))


def chosen(rows: PreparedRows, *, negatives: int, step: int = 0, seed: int = 1):
    entry = SourceConfig(source="source", in_batch_negatives=False, negatives_per_query=negatives)
    numbers = np.arange(len(rows))
    return RowChooser([rows], [entry], seed=seed).choose(PlannedBatch(step, np.zeros_like(numbers), numbers))


def texts_of(rows):
    return [(row.query, row.texts[row.target], [row.texts[key] for key in row.negatives]) for row in rows]


def test_an_example_shares_the_class_and_negatives_do_not(tmp_path):
    rows = chosen(grouped(labelled(*TEXTS), tmp_path), negatives=4)
    assert len(rows) == 18
    for query, positive, negatives in texts_of(rows):
        assert positive[0] == query[0]
        assert positive != query
        assert len(set(negatives)) == 4
        assert query[0] not in {text[0] for text in negatives}
    assert all(key == (document_id(text), "") for row in rows for key, text in row.texts.items())
    assert all(row.positives == [row.target] for row in rows)


def test_every_other_text_of_the_class_and_of_the_others_comes(tmp_path):
    rows = grouped(labelled(*TEXTS), tmp_path)
    drawn = [texts_of(chosen(rows, negatives=2, step=step))[0] for step in range(200)]
    assert {positive for _, positive, _ in drawn} == {f"a{number}" for number in range(1, 6)}
    assert {text for _, _, negatives in drawn for text in negatives} == {
        text for text, label in TEXTS if label != "a"
    }


def test_each_step_draws_afresh_and_seed_and_step_alone_decide(tmp_path):
    rows = grouped(labelled(*TEXTS), tmp_path)
    assert chosen(rows, negatives=2) == chosen(rows, negatives=2)
    assert chosen(rows, negatives=2) != chosen(rows, negatives=2, step=1)
    assert chosen(rows, negatives=2) != chosen(rows, negatives=2, seed=2)


def test_label_texts_are_the_documents(tmp_path):
    names = {"a": "first", "b": "second", "c": "third"}
    rows = grouped(labelled(*TEXTS), tmp_path, "label", names)
    query, positive, negatives = texts_of(chosen(rows, negatives=5))[1]
    assert (query, positive, sorted(negatives)) == ("b0", "second", ["first", "third"])
    plain = grouped(labelled(*TEXTS), tmp_path, "label")
    assert {text for _, text, _ in texts_of(chosen(plain, negatives=1))} == {"a", "b", "c"}


@pytest.mark.parametrize(("classes", "texts"), [("ab", ("good", "bad")), ("abc", None)])
def test_two_classes_are_named_and_more_are_shown_by_examples(classes, texts):
    rows = labelled(*((f"{label}{number}", label) for label in classes for number in range(3)))
    assert group_by_class(rows, "source", "auto", {"a": "good", "b": "bad"}).texts == texts


def test_repeats_texts_of_two_classes_and_lonely_ones_are_left_out_and_counted(caplog):
    pairs = [
        ("a1", "a"),
        ("a2", "a"),
        ("a2", "a"),
        ("both", "a"),
        ("c1", "c"),
        ("b1", "b"),
        ("b2", "b"),
        ("both", "b"),
    ]
    with caplog.at_level(logging.WARNING):
        grouping = group_by_class(labelled(*pairs), "source", "example", None)
    assert grouping.keep_R.tolist() == [True, True, False, False, False, True, True, False]
    assert grouping.of_row.tolist() == [0, 0, 1, 1]
    assert "source source: 1 classes have one text and give no row: c" in caplog.text
    assert "source source: 1 texts have two classes and are left out" in caplog.text
    named = group_by_class(labelled(*pairs), "source", "label", None)
    assert named.texts == ("a", "c", "b")
    assert named.of_row.tolist() == [0, 0, 1, 2, 2]


def test_labels_with_one_text_are_one_class():
    names = {"a": "good", "b": "bad", "c": "good"}
    grouping = group_by_class(labelled(*TEXTS), "source", "label", names)
    assert grouping.texts == ("good", "bad")
    assert grouping.of_row.tolist() == [0, 1, 0] * 6


@pytest.mark.parametrize(
    ("pairs", "labels", "label_texts", "message"),
    [
        ([("a1", "a"), ("a2", "a")], "example", None, r"has 1 class\(es\) \(a\)"),
        ([("a1", "a"), ("b1", "b")], "example", None, "0 of 2 classes have two texts or more"),
        (
            [("a1", "a"), ("a2", "a"), ("b1", "b")],
            "example",
            None,
            "1 of 2 classes have two texts .*labels: label",
        ),
        (TEXTS, "label", {"a": "x", "b": "y"}, r"lacks the labels \['c'\]"),
        (TEXTS, "label", dict.fromkeys("abc", "x"), "has one text for all labels"),
        ([("x", "1"), ("y", "2")], "label", None, "numbers 1, 2, which as documents say nothing"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(pairs, labels, label_texts, message):
    with pytest.raises(DataError, match=message):
        group_by_class(labelled(*pairs), "source", labels, label_texts)


def test_the_first_row_of_each_text_is_kept():
    rows = labelled(*((text, "x") for text in ["b", "a", "b", "c", "a", "b"]))
    assert distinct_texts(rows).tolist() == [True, True, False, True, False, False]

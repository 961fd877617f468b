import logging

import pyarrow as pa
import pytest

from rayembed.common.errors import DataError
from rayembed.data.contrastive import (
    contrastive_rows,
    example_based_rows,
    is_symmetric,
    label_based_rows,
    text_rows,
)
from rayembed.data.prepared import PreparedRows
from rayembed.records.schema import PAIR_SCHEMA, label_row, score_row, sentence_label_row, to_table
from tests.training.sources import write_source


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


def table(kind, *rows):
    make = score_row if kind == "scores" else sentence_label_row
    return to_table([make(*row, dataset="d", task_type="sts") for row in rows], kind)


def contrasted(kind, *rows, **settings):
    made = contrastive_rows(
        table(kind, *rows), kind, labels="example", negatives_per_query=1, seed=0, **settings
    )
    assert made.schema == PAIR_SCHEMA
    return [(row["query"], row["positives"], row["negatives"]) for row in made.to_pylist()]


def test_sentences_with_a_score_of_four_are_rows_in_both_directions():
    rows = [("a", "b", 4.0), ("c", "d", 3.9), ("e", "e", 5.0), ("f", "g", 4.6)]
    assert contrasted("scores", *rows) == [
        ("a", ["b"], []),
        ("b", ["a"], []),
        ("f", ["g"], []),
        ("g", ["f"], []),
    ]
    assert len(contrasted("scores", *rows, least_score=4.5)) == 2
    with pytest.raises(DataError, match="score of 9 or more"):
        contrasted("scores", *rows, least_score=9)
    percent = [("a", "b", 80.0), ("c", "d", 12.0)]
    with pytest.raises(DataError, match=r"scores go from 12 to 80, so 4 of 5 does not say .*set least_score"):
        contrasted("scores", *percent)
    assert len(contrasted("scores", *percent, least_score=60)) == 2


def test_inference_gives_premise_entailment_and_contradictions():
    rows = [
        ("a man plays", "a person plays", "entailment"),
        ("a man plays", "nobody plays", "contradiction"),
        ("a man plays", "he plays well", "neutral"),
        ("a man plays", "someone plays", "entailment"),
        ("a dog runs", "an animal runs", "entailment"),
        ("a cat", "a dog", "contradiction"),
    ]
    assert contrasted("nli", *rows) == [
        ("a man plays", ["a person plays"], ["nobody plays"]),
        ("a man plays", ["someone plays"], ["nobody plays"]),
        ("a dog runs", ["an animal runs"], []),
    ]
    with pytest.raises(DataError, match="no pair is labelled entailment"):
        contrasted("nli", rows[1])


def test_duplicates_are_rows_in_both_directions_and_differences_are_negatives():
    rows = [
        ("a", "b", "1"),
        ("b", "c", "1"),
        ("a", "c", "0"),
        ("a", "x", "0"),
        ("y", "y", "1"),
        ("u", "v", "1"),
    ]
    assert contrasted("duplicates", *rows) == [
        ("a", ["b"], ["x"]),
        ("b", ["a"], []),
        ("b", ["c"], []),
        ("c", ["b"], []),
        ("u", ["v"], []),
        ("v", ["u"], []),
    ]
    made = contrastive_rows(
        table("duplicates", *rows), "duplicates", labels="example", negatives_per_query=1, seed=0
    )
    clusters = made["cluster"].to_pylist()
    assert len(set(clusters[:4])) == 1
    assert clusters[4] not in clusters[:4]
    with pytest.raises(DataError, match="labelled 1"):
        contrasted("duplicates", rows[3])


@pytest.mark.parametrize(("classes", "positive"), [("ab", "good"), ("abc", None)])
def test_two_classes_are_named_and_more_are_shown_by_examples(classes, positive):
    rows = [
        label_row(f"{label}{number}", label, dataset="d", task_type="classification")
        for label in classes
        for number in range(3)
    ]
    made = contrastive_rows(
        to_table(rows, "labels"),
        "labels",
        labels="auto",
        label_texts={"a": "good", "b": "bad"},
        negatives_per_query=1,
        seed=0,
    ).to_pylist()
    if positive:
        assert (made[0]["positives"], made[0]["negatives"]) == (["good"], ["bad"])
    else:
        assert made[0]["positives"][0] in ("a1", "a2")


def test_the_instruction_goes_on_both_sides_where_they_could_change_places():
    assert is_symmetric("labels", "classification", "example")
    assert not is_symmetric("labels", "classification", "label")
    assert is_symmetric("duplicates", "retrieval", "example")
    assert is_symmetric("pairs", "bitext", "example")
    assert not is_symmetric("pairs", "retrieval", "example")


def test_texts_of_a_source_once_each(tmp_path):
    table = pa.Table.from_batches(PreparedRows.open(write_source(tmp_path / "one.json", rows=5)).batches())
    doubled = table.take([0, 1, 1, 2])
    rows = text_rows(doubled, "documents").to_pylist()
    assert [row["query"] for row in rows] == [
        f"about {word} number {n}" for n, word in enumerate(["sun", "rain", "snow"])
    ]
    assert all(row["positives"] == [row["query"]] and row["negatives"] == [] for row in rows)
    assert text_rows(doubled, "queries")["query"][1].as_py() == "rain 1?"

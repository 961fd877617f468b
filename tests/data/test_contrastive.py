import pyarrow as pa
import pytest

from rayembed.common.errors import DataError
from rayembed.data.contrastive import contrastive_rows, is_symmetric, text_rows
from rayembed.data.prepared import PreparedRows
from rayembed.records.schema import PAIR_SCHEMA, label_row, score_row, sentence_label_row, to_table
from tests.training.sources import write_source


def test_a_labelled_text_is_a_row_of_its_class_without_documents():
    rows = [
        label_row(f"text {n}", label, dataset="d", task_type="classification")
        for n, label in ((1, "a"), (2, "b"))
    ]
    made = contrastive_rows(to_table(rows, "labels"), "labels")
    assert made.schema == PAIR_SCHEMA
    assert [
        (row["query"], row["positives"], row["negatives"], row["cluster"]) for row in made.to_pylist()
    ] == [
        ("text 1", [], [], "a"),
        ("text 2", [], [], "b"),
    ]


def table(kind, *rows):
    make = score_row if kind == "scores" else sentence_label_row
    return to_table([make(*row, dataset="d", task_type="sts") for row in rows], kind)


def contrasted(kind, *rows, **settings):
    made = contrastive_rows(table(kind, *rows), kind, **settings)
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
    assert contrasted("scores", *rows, least_score=9) == []
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
    made = contrastive_rows(table("duplicates", *rows), "duplicates")
    clusters = made["cluster"].to_pylist()
    assert len(set(clusters[:4])) == 1
    assert clusters[4] not in clusters[:4]
    with pytest.raises(DataError, match="labelled 1"):
        contrasted("duplicates", rows[3])


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

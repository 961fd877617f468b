import json
import logging

import pytest

from rayembed.common.errors import DataError
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.own_tasks import OwnTask, load_own_task
from tests.evaluation.conftest import WordEngine

DOCUMENTS = '{"_id": "010", "text": "a cat"}\n{"_id": "2e4", "text": "a dog"}\n'
QUERIES = '{"_id": "q010", "text": "cat?"}\n{"_id": "q2e4", "text": "dog?"}\n'
JUDGED = "query-id\tcorpus-id\tscore\nq010\t010\t1\nq2e4\t2e4\t1\n"
BOTH = {"q010": {"010": 1}, "q2e4": {"2e4": 1}}


def search_task(folder, corpus=DOCUMENTS, queries=QUERIES, judged=JUDGED, **settings):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text(judged)
    return load_own_task(OwnTask(name="Search", type="Retrieval", folder=folder, **settings), folder)


@pytest.mark.parametrize(
    ("judged", "grades"),
    [
        (JUDGED, BOTH),
        ("query_id\tdoc_id\trelevance\nq010\t010\t1\nq2e4\t2e4\t1\n", BOTH),
        ("q010 0 010 1\nq2e4 0 2e4 1\n", BOTH),
        ("q010\t010\t1.0\nq2e4\t2e4\t1.0\n", BOTH),
        ("q010\t010\t1\nq010\t2e4\t.5\nq2e4\t2e4\t1\n", {"q010": {"010": 2, "2e4": 1}, "q2e4": {"2e4": 2}}),
        ("q010\t010\t2\nq2e4\t2e4\t-1\n", {"q010": {"010": 2}, "q2e4": {"2e4": 0}}),
    ],
)  # fmt: skip
def test_judgements_of_any_header_and_grade_keep_their_ids_as_text(tmp_path, judged, grades):
    split = search_task(tmp_path / "task", judged=judged).dataset["default"]["test"]
    assert split["relevant_docs"] == grades
    assert list(split["corpus"]["id"]) == ["010", "2e4"]


def test_untidy_corpora_are_read(tmp_path):
    lines = (
        '{"_id": "010", "title": "Cats", "text": null, "year": 2001}',
        '{"_id": "2e4", "title": null, "text": null, "year": "n.d.", "year": {"at": 1}}',
        json.dumps({"_id": "long", "text": "word " * 300_000}),
    )
    corpus = search_task(tmp_path / "task", corpus="\n".join(lines)).dataset["default"]["test"]["corpus"]
    assert list(corpus["text"])[:2] == ["Cats", ""]
    assert len(corpus["text"][2]) == 1_499_999


def test_a_query_among_the_documents_is_told_and_can_be_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rayembed"), "propagate", True)
    files = {
        "corpus": '{"_id": "a", "text": "for cars"}\n{"_id": "b", "text": "for cars no"}\n',
        "queries": '{"_id": "a", "text": "for cars"}\n',
        "judged": "a\tb\t1\n",
    }
    found = search_task(tmp_path / "one", **files)
    assert "1 queries are documents of the corpus under the same id" in caplog.text
    left_out = search_task(tmp_path / "two", **files, ignore_identical_ids=True)
    scores = [
        evaluate_task(EngineEncoder(WordEngine(), "own"), task).get_score() for task in (found, left_out)
    ]
    assert scores[0] < scores[1] == 1.0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"queries": QUERIES.replace('"dog?"', "null")}, "query q2e4 is judged and has no text"),
        ({"corpus": DOCUMENTS.replace('"2e4"', "null")}, r"corpus.jsonl, row 2: _id is empty"),
        ({"corpus": DOCUMENTS + "{oops\n"}, "row 3: .*; correct it"),
        ({"judged": JUDGED + "q010\t010\tgood\n"}, "test.tsv:4 is not query-id, corpus-id and score"),
        ({"judged": "q010\tother\t1\n"}, "judges query q010 and document other"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        search_task(tmp_path / "task", **files)


def test_one_class_and_blank_cells_are_refused_and_texts_become_numbers(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "a text,git\n" * 20)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "git"}\n{"text": "b", "label": null}\n')
    task = OwnTask(name="Topics", type="Classification", train="train.csv", test="train.csv")
    with pytest.raises(DataError, match=r"all texts of .*train.csv have the label 'git'; add"):
        load_own_task(task, tmp_path)
    with pytest.raises(DataError, match=r"test.jsonl, row 2: label is empty"):
        load_own_task(task.model_copy(update={"test": "test.jsonl"}), tmp_path)
    (tmp_path / "train.csv").write_text("text,label\na,git\nb,food\n")
    two = load_own_task(task, tmp_path).dataset["train"]
    assert list(two["label"]) == [1, 0]  # of the labels in order, which mteb's scorer needs as numbers
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\nno 5\tno 6\t3.5\n")
    task = OwnTask(name="Pairs", type="STS", test="pairs.tsv")
    assert load_own_task(task, tmp_path).dataset["test"][0] == {
        "sentence1": "no 5", "sentence2": "no 6", "score": 3.5,
    }  # fmt: skip

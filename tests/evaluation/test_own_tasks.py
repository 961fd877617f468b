"""Files of own tasks: what they mean, or the sentence that refuses them."""

# ruff: noqa: E501  # a table is easier to read with a case on a line

import json
import logging
import math

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
        ("rel\tdocno\ttopic\n1\t010\tq010\n1\t2e4\tq2e4\n", BOTH),
        ('"qid"\t"pid"\t"label"\t\n"q010"\t"010"\t"1"\t\n"q2e4"\t"2e4"\t"1"\t\n', BOTH),
        ("q010,010,1\nq2e4,2e4,1\n", BOTH),
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
        ({"corpus": DOCUMENTS.replace('"2e4"', "null")}, r"corpus.jsonl:2 has no id and text"),
        ({"corpus": DOCUMENTS + "{oops\n"}, "corpus.jsonl:3 cannot be read .Expecting.*; correct the line"),
        ({"judged": JUDGED + "q010\t010\tgood\n"}, "test.tsv:4 is not query-id, corpus-id and score"),
        ({"judged": "q010\tother\t1\n"}, "judges query q010 and document other"),
        ({"judged": JUDGED + "q010\t010\t0\n"}, "test.tsv:4 gives document 010 of query q010 a second grade"),
        ({"judged": "q010\tgood\n"}, "test.tsv has no judgements"),
        ({"judged": "q010\t010\t0\n"}, "has no grade above 0"),
        ({"corpus": DOCUMENTS + '{"_id": "010", "text": "a cow"}'}, "two texts with the id 010"),
        (
            {"corpus": DOCUMENTS.replace('"a cat"', '["a cat"]')},
            r"corpus.jsonl:1: text is \['a cat'\], not a text",
        ),
        ({"queries": QUERIES.replace("dog?", "\\ud83d")}, "queries.jsonl:2: text is not UTF-8"),
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
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\nno 5\tno 6\t3.5\na\tb\t1\n")
    task = OwnTask(name="Pairs", type="STS", test="pairs.tsv")
    assert load_own_task(task, tmp_path).dataset["test"][0] == {
        "sentence1": "no 5", "sentence2": "no 6", "score": 3.5,
    }  # fmt: skip


FILES = {  # files of a search task, in other formats and under other names
    "dictionaries": ({"c.json": '{"010": {"text": "a cat"}, "2e4": {"text": "a dog"}}', "q.json": '{"q010": "cat?", "q2e4": "dog?"}',
                      "j.json": '{"q010": {"010": 1}, "q2e4": ["2e4"]}'}),
    "lines of TREC": ({"c.tsv": "010\ta cat\n2e4\ta dog\n", "q.tsv": "q010\tcat?\nq2e4\tdog?\n", "j.qrels": "q010 0 010 1\nq2e4 0 2e4 1\n"}),
    "tables": ({"c.csv": "docid,title,contents\n 010,a,cat\n2e4,,a dog\n", "q.tsv": "qid\tquery\nq010\tcat?\nq2e4\tdog?\n",
                "j.csv": "query_id,doc_id,relevance\nq010,010,1.0\nq2e4,2e4,1.0\n"}),
    "NaN and numbers": ({"c.jsonl": DOCUMENTS.replace('"text": "a cat"', '"title": "a cat", "text": NaN'), "q.jsonl": QUERIES,
                         "j.jsonl": '{"query-id": "q010", "corpus-id": "010 ", "score": "1"}\n{"query-id": "q2e4", "corpus-id": "2e4", "score": 1}\n'}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_search_task_may_have_any_format_and_usual_names(tmp_path, name):
    for file, content in FILES[name].items():
        (tmp_path / file).write_text(content)
    corpus, queries, judgements = FILES[name]
    task = OwnTask(name="S", type="Retrieval", corpus=corpus, queries=queries, judgements=judgements)
    split = load_own_task(task, tmp_path).dataset["default"]["test"]
    assert split["relevant_docs"] == BOTH
    assert dict(zip(split["corpus"]["id"], split["corpus"]["text"], strict=True)) == {
        "010": "a cat",
        "2e4": "a dog",
    }
    assert list(split["queries"]["text"]) == ["cat?", "dog?"]


def test_judged_queries_need_candidates(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"query-id": "q010", "corpus-ids": ["010"]}\n{"query-id": "q010", "corpus-ids": ["2e4"]}\n'
    )
    settings = {"type": "Reranking", "folder": tmp_path / "task", "candidates": tmp_path / "c.jsonl"}
    search_task(tmp_path / "task")
    with pytest.raises(DataError, match=r"c.jsonl has no documents for judged queries such as \['q2e4'\]"):
        load_own_task(OwnTask(name="R", **settings), tmp_path)
    (tmp_path / "task/qrels/test.tsv").write_text("q010\t010\t1\n")
    split = load_own_task(OwnTask(name="R", **settings), tmp_path).dataset["default"]["test"]
    assert split["top_ranked"] == {"q010": ["010", "2e4"]}


PAIR = {"sentence1": "a", "sentence2": "b"}
ROWS = [
    # type, rows, columns of the task or a text of the refusal
    ("STS", [PAIR | {"score": 1}, PAIR | {"score": "2.5"}, PAIR | {"sentence1": 7, "score": 0}],
     {"score": [1, 2.5, 0], "sentence1": ["a", "a", "7"]}),
    ("STS", [PAIR | {"score": 1}, PAIR | {"score": math.nan}], "row 2: score is empty"),
    ("STS", [PAIR | {"score": 1}, PAIR | {"score": math.inf}], "row 2: score inf is no number"),
    ("STS", [PAIR | {"score": 1}, PAIR | {"score": 1.0}], "have the score 1.0, so nothing can be scored"),
    ("STS", [PAIR | {"score": [1]}], r"row 1: score is \[1\], not one text or number"),
    ("PairClassification", [{"text_a": "a", "text_b": "b", "label": label} for label in ("True", 0.0, "1.0", "no")],
     {"labels": [1, 0, 1, 0]}),
    ("PairClassification", [{"sentence1": ["a", "c"], "sentence2": ["b", "d"], "labels": [1, 0]}], {"labels": [1, 0]}),
    ("PairClassification", [PAIR | {"label": 1}, PAIR | {"label": 0.5}], "row 2: labels 0.5 is neither 0 nor 1"),
    ("PairClassification", [PAIR | {"label": 1}, PAIR | {"label": True}], "have the labels 1, so nothing"),
    ("Clustering", [{"text": "a", "label": 1.0}, {"text": "b", "label": " x"}], {"sentences": ["a", "b"], "labels": ["1", "x"]}),
    ("Clustering", [{"text": "a", "label": 1}, {"text": "b", "label": 1}], "have the labels '1', so nothing"),
    ("ClusteringLegacy", [{"sentences": ["a", "b"], "labels": ["x"]}], "sentences and labels differ in length"),
    ("ClusteringLegacy", [{"sentences": "a", "labels": "x"}], "sentences is 'a', not a list; give JSON lines"),
    ("Classification", [{"text": "a", "label": ["x"]}], r"label is \['x'\], not one text"),
    ("Classification", [{"text": {"a": 1}, "label": "x"}], "text is .*, not a text"),
    ("Classification", [{"sentence": "a", "category": math.nan}], "label is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rows", "expected"), ROWS)
def test_rows_have_one_meaning_or_are_refused(tmp_path, kind, rows, expected):
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = OwnTask(
        name="Rows", type=kind, test="t.jsonl", train="t.jsonl" if kind == "Classification" else None
    )
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load_own_task(task, tmp_path)
        return
    found = load_own_task(task, tmp_path).dataset["test"]
    assert {name: list(found[name]) for name in expected} == expected

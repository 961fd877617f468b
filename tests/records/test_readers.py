import gzip
import json
import sqlite3

import datasets
import pytest

from rayembed.common.errors import ConfigError, DataError, ResourceError
from rayembed.common.paths import resolve
from rayembed.config.data import UserSourceConfig
from rayembed.data import build
from rayembed.data.store import read_split
from rayembed.records import judged, mteb_tasks, text_files


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(build, "on_all_cpus", lambda function, jobs, title, *, here: map(function, jobs))
    datasets.disable_progress_bars()


def load(data, path, **settings):
    build.build_user_source("mine", UserSourceConfig(path=str(path), **settings), data)
    return read_split(data, "mine", "train").to_pylist()


def json_file(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{number}", "title": "t", "text": f"text {number}"} for number in range(4)]
    json_file(folder / "corpus.jsonl", [*corpus, {"_id": "d4", "text": "no title"}])
    json_file(folder / "queries.jsonl", [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}])
    judgements = "q1\td0\t1\nq1\td1\t2\nq1\td2\t0\nq2\td4\t1\n"
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}")
    return folder


def test_beir_folder(tmp_path, beir):
    rows = load(tmp_path / "data", beir)
    assert [(row["query"], row["positives"], row["negatives"]) for row in rows] == [
        ("one", ["t text 0", "t text 1"], ["t text 2"]),
        ("two", ["no title"], []),
    ]
    with pytest.raises(DataError, match=r"qrels/dev.tsv; judged splits: train"):
        load(tmp_path / "data", beir, split="dev")


def test_beir_judgements_in_several_files(tmp_path, beir):
    whole = load(tmp_path / "whole", beir)
    (beir / "qrels" / "train.tsv").unlink()
    for shard, judgements in enumerate(("q1\td0\t1\nq1\td1\t2\nq1\td2\t0\n", "q2\td4\t1\n")):
        (beir / "qrels" / f"train-0000{shard}-of-00002.tsv").write_text(judgements)
    rows = load(tmp_path / "shards", beir)
    assert [row["positives"] for row in rows] == [row["positives"] for row in whole]


def test_beir_judgements_of_what_is_not_there(tmp_path, beir):
    with (beir / "qrels" / "train.tsv").open("a") as stream:
        stream.write("q3\td0\t1\nq2\td9\t1\n")
    with pytest.raises(DataError, match=r"2 of 3 rows are bad.*2 x unknown id"):
        load(tmp_path / "data", beir)
    with (beir / "qrels" / "train.tsv").open("a") as stream:
        stream.write("q3\td0\n")
    with pytest.raises(DataError, match=r"train.tsv:8 is not query-id, corpus-id and score"):
        load(tmp_path / "data", beir)
    (beir / "corpus.jsonl").write_text('{"_id": "d0"}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl:1 has no id and text"):
        load(tmp_path / "data", beir)


@pytest.mark.parametrize("format", ["beir", "triples"])
def test_the_texts_of_a_collection_reach_nodes_with_disks_of_their_own(
    tmp_path, beir, monkeypatch, node, s3, format
):
    def on_the_others(function, jobs, title, *, here):
        for texts in node("a").rglob("*.sqlite"):
            texts.unlink()  # which other nodes do not see
        for number, job in enumerate(jobs):
            node(f"b{number}")
            yield function(job)
        node("a")

    monkeypatch.setattr(build, "on_all_cpus", on_the_others)
    source = beir
    settings = {"format": format}
    if format == "triples":
        source = tmp_path / "triples.tsv"
        source.write_text("q1\td0\td2\nq2\td4\td1\n")
        settings |= {"corpus": str(beir / "corpus.jsonl"), "queries": str(beir / "queries.jsonl")}
    monkeypatch.setattr(judged, "_QUERIES", 1)
    rows = load(resolve(s3.uri(f"bucket/{format}")), source, **settings)
    assert [row["query"] for row in rows] == ["one", "two"]
    assert rows[1]["positives"] == ["no title"]


def test_a_disk_that_fills_up_while_texts_are_indexed(tmp_path, beir, monkeypatch):
    connect = sqlite3.connect

    def small_database(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute("pragma max_page_count = 2")
        return connection

    json_file(beir / "corpus.jsonl", [{"_id": f"d{number}", "text": "word " * 500} for number in range(99)])
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", small_database)
        with pytest.raises(ResourceError, match="no space is left on the disk"):
            load(tmp_path / "data", beir)
    assert [path.name for path in tmp_path.rglob("corpus.*") if path.parent != beir] == []
    assert len(load(tmp_path / "data", beir, largest_bad_share=0.5)) == 1


def test_lines_of_plain_text(tmp_path, monkeypatch):
    columns = {"query": "text", "positives": "text"}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("about")
    path = tmp_path / "notes" / "a.txt"
    path.write_bytes('\ufeffone text\r\n\nanother, with "marks"\n'.encode() + b"caf\xe9\nlast")
    monkeypatch.setattr(text_files, "PART_BYTES", 7)
    expected = ["one text", 'another, with "marks"', "last"]
    settings = {"columns": columns, "largest_bad_share": 0.5}
    assert [row["query"] for row in load(tmp_path / "data", path, **settings)] == expected
    rows = load(tmp_path / "data", path.parent, format="text", **settings)
    assert [row["positives"] for row in rows] == [[text] for text in expected]
    with pytest.raises(DataError, match="nothing to read as format auto"):
        load(tmp_path / "data", path.parent, columns=columns)


@pytest.mark.parametrize("compressed", [False, True])
def test_triples_by_id(tmp_path, monkeypatch, compressed):
    """All lines of a query are one row, wherever they are in the file."""
    monkeypatch.setattr(judged, "_QUERIES", 2)
    monkeypatch.setattr(judged, "_AT_A_TIME", 3)
    (tmp_path / "collection.tsv").write_text("1\tpassage one\n2\tpassage two\n3\tpassage\twith a tab\n")
    (tmp_path / "queries.tsv").write_text("10\tquery ten\n11\tquery eleven\n12\tquery twelve\n")
    content = b"10\t1\t2\n11\t2\t3\n\n12\t3\n11\t2\t1\n10 0 3 1\n10 0 2 0\n11\t2\t3\n"
    triples = tmp_path / ("triples.tsv.gz" if compressed else "triples.tsv")
    triples.write_bytes(gzip.compress(content) if compressed else content)
    beside = {"corpus": str(tmp_path / "collection.tsv"), "queries": str(tmp_path / "queries.tsv")}
    rows = load(tmp_path / "data", triples, format="triples", **beside)
    assert [(row["query"], row["positives"], row["negatives"]) for row in rows] == [
        ("query ten", ["passage one", "passage\twith a tab"], ["passage two"]),
        ("query eleven", ["passage two"], ["passage\twith a tab", "passage one"]),
        ("query twelve", ["passage\twith a tab"], []),
    ]
    content += b"10\t1\t9\n13\t1\t2\n12 1 x 2 3\n12 0 1 much\n"
    triples.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError, match="4 of 7 rows are bad"):
        load(tmp_path / "data", triples, format="triples", **beside)
    listed = map(json.loads, (tmp_path / "data" / "mine.rejects.jsonl").read_text().splitlines())
    assert [row["detail"] for row in listed] == [
        "line 11 has 5 fields, not 2, 3 or 4",
        "line 12 has grade 'much', not a number",
        "document 9 of query 10 in line 9",
        "query 13",
    ]
    with pytest.raises(ConfigError, match="needs corpus and queries"):
        load(tmp_path / "data", triples, format="triples")
    with pytest.raises(DataError, match="does not exist"):
        load(
            tmp_path / "data",
            triples,
            format="triples",
            corpus=str(tmp_path / "no"),
            queries=beside["queries"],
        )


@pytest.fixture
def sentiment():
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    columns = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_hugging_face_folders(tmp_path, sentiment):
    everything = {"largest_bad_share": 1.0}
    sentiment.select([1, 0]).save_to_disk(tmp_path / "one")
    rows = load(tmp_path / "data", tmp_path / "one", kind="labels")
    assert [(row["text"], row["label"]) for row in rows] == [("b", "good"), ("a", "bad")]

    both = datasets.DatasetDict(train=sentiment.select([0]), test=sentiment)
    both.save_to_disk(tmp_path / "both")
    assert len(load(tmp_path / "data", tmp_path / "both", kind="labels", split="train")) == 1
    with pytest.raises(DataError, match=r"has the splits test, train; choose one with split"):
        load(tmp_path / "data", tmp_path / "both", kind="labels")
    rows = load(tmp_path / "data", tmp_path / "both", kind="labels", split="test", **everything)
    assert [row["text"] for row in rows] == ["a", "b"], "a row without a class is left out"
    with pytest.raises(DataError, match=r"no split 'validation'; it has the splits test, train"):
        load(tmp_path / "data", tmp_path / "both", kind="labels", split="dev")

    (tmp_path / "hub" / "data").mkdir(parents=True)
    sentiment.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    sentiment.select([0]).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    rows = load(tmp_path / "data", tmp_path / "hub", kind="labels", split="train", **everything)
    assert [row["label"] for row in rows] == ["bad", "good"]


def test_a_cut_arrow_file_is_an_error(tmp_path, sentiment):
    sentiment.save_to_disk(tmp_path / "one")
    file = next((tmp_path / "one").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="is not a complete Arrow file"):
        load(tmp_path / "data", tmp_path / "one", kind="labels")


class FakeTask:
    def __init__(self, dataset):
        self.dataset = dataset

    def load_data(self):
        if self.dataset is None:
            raise ConnectionError("no network")


def test_mteb_tasks(tmp_path, monkeypatch):
    retrieval = {
        "corpus": datasets.Dataset.from_dict({"id": ["d0", "d1"], "title": ["t", ""], "text": ["x", "y"]}),
        "queries": datasets.Dataset.from_dict({"id": ["q0"], "text": ["what"]}),
        "relevant_docs": {"q0": {"d0": 1, "d1": 0}},
        "top_ranked": None,
    }
    clusters = datasets.Dataset.from_dict({"sentences": ["a", "b"], "labels": ["x", "y"]})
    tasks = {
        "Find": FakeTask({"default": {"train": retrieval}}),
        "Sort": FakeTask({"train": clusters, "test": clusters}),
        "Away": FakeTask(None),
    }
    monkeypatch.setattr("mteb.get_task", tasks.__getitem__)
    (row,) = load(tmp_path, "Find", format="mteb")
    assert (row["query"], row["positives"], row["negatives"]) == ("what", ["t x"], ["y"])
    rows = load(tmp_path, "Sort", format="mteb", kind="labels", split="test")
    assert [(row["text"], row["label"]) for row in rows] == [("a", "x"), ("b", "y")]
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        load(tmp_path, "Sort", format="mteb", split="dev")
    with pytest.raises(ResourceError, match=r"mteb task Away cannot be loaded \(no network\)"):
        load(tmp_path, "Away", format="mteb")
    monkeypatch.undo()
    with pytest.raises(DataError, match="mteb has no task 'Bankin77'"):
        mteb_tasks.load_task("Bankin77")

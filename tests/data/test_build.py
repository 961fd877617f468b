import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import ConfigError, DataError, ResourceError
from rayembed.config.data import UserSourceConfig
from rayembed.data import build, part_writer
from rayembed.data.store import read_split
from rayembed.records import columnar, text_files
from rayembed.records.schema import LABEL_SCHEMA, PAIR_SCHEMA, SCORE_SCHEMA

GOOD = {"query": "q", "positive": "p"}
EVERYTHING = {"largest_bad_share": 1.0}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Jobs one after the other, without Ray; test_tasks.py and the end-to-end test cover the cluster."""
    monkeypatch.setattr(build, "on_all_cpus", lambda function, jobs, title, *, here: map(function, jobs))


def write(path, records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def load(path, kind="pairs", **settings):
    data = path.parent / "data"
    source = UserSourceConfig(path=str(path), kind=kind, **settings)
    build.build_user_source("mine", source, data)
    return read_split(data, "mine", "train")


def rejects(path):
    folder = path.parent / "data"
    listed = [folder / "mine" / "rejects.jsonl", folder / "mine.rejects.jsonl"]
    return [json.loads(line) for file in listed if file.exists() for line in file.read_text().splitlines()]


def test_a_folder_of_several_formats_is_one_source(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write(
        folder / "a.jsonl",
        [
            {"query": "q1", "pos": ["p1", "p2"], "neg": ["n1"]},
            {"query": "q2", "positive": "p3", "cluster": 4, "prompt": "Find"},
            {"query": "q4", "positive_passages": [{"title": "t", "text": "p4"}], "negative_passages": []},
        ],
    )
    pq.write_table(pa.Table.from_pylist([{"query": "q3", "positives": ["p\u2028"]}]), folder / "b.parquet")
    (folder / "c.csv").write_text('query,positive\nq5,"p,5\nsecond line"\n')
    (folder / "d.tsv").write_text("query\tpositive\nq6\tp6\n")
    (folder / "notes.md").write_text("not data")
    table = load(folder)
    assert table.schema == PAIR_SCHEMA
    assert table["positives"].to_pylist() == [
        ["p1", "p2"],
        ["p3"],
        ["t p4"],
        ["p\u2028"],
        ["p,5\nsecond line"],
        ["p6"],
    ]
    assert table["negatives"].to_pylist() == [["n1"], [], [], [], [], []]
    assert table["cluster"].to_pylist() == [None, "4", None, None, None, None]
    assert table["instruction"].to_pylist() == [None, "Find", None, None, None, None]
    assert set(table["dataset"].to_pylist()) == {"mine"}


def test_labels_scores_and_sentence_pairs(tmp_path):
    (tmp_path / "a").mkdir()
    records = [{"text": "t", "label": 3}, {"text": "u", "label": "x", "group": 7}]
    labels = load(write(tmp_path / "labels.jsonl", records), "labels")
    assert labels.schema == LABEL_SCHEMA
    assert labels["label"].to_pylist() == ["3", "x"]
    assert labels["group"][1].as_py() == "7"
    scores = load(write(tmp_path / "s.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 4}]), "scores")
    assert scores.schema == SCORE_SCHEMA
    nli = load(write(tmp_path / "n.jsonl", [{"premise": "a", "hypothesis": "b", "label": 2}]), "nli")
    assert nli["label"].to_pylist() == ["contradiction"]
    questions = [{"question1": "a", "question2": "b", "is_duplicate": True}]
    assert load(write(tmp_path / "d.jsonl", questions), "duplicates")["label"].to_pylist() == ["1"]


@pytest.mark.parametrize(
    ("record", "kind", "reason", "detail"),
    [
        ("{not json", "pairs", "broken JSON", "Expecting property name"),
        ("[1]", "pairs", "wrong type", "not a JSON object"),
        ({"query": " ", "positive": "p"}, "pairs", "empty", "query"),
        ({"query": None, "positive": "p"}, "pairs", "empty", "query"),
        ({"query": ["q"], "positive": "p"}, "pairs", "wrong type", "query is not a text"),
        ({"query": "\ud83d", "positive": "p"}, "pairs", "broken encoding", "query"),
        ({"query": "q", "positive": []}, "pairs", "no positive", "empty list"),
        ({"query": "q", "positive": [3]}, "pairs", "wrong type", "positive is not a text"),
        ({"query": "q", "positive": 3}, "pairs", "wrong type", "neither a text nor a list"),
        (
            {"query": "q", "positive": "p", "teacher_scores": [1, 2]},
            "pairs",
            "wrong type",
            "list of 1 numbers",
        ),
        ({"query": "q", "positive": "p", "teacher_scores": ["a"]}, "pairs", "wrong type", "not a number"),
        ({"query": "q", "positive": "p", "neg": [{"title": "t"}]}, "pairs", "wrong type", "negative is"),
        ({"query": "q", "positive": "p", "neg": ["p"]}, "pairs", "contradiction", "also a positive"),
        ({"query": "q" * 100_001, "positive": "p"}, "pairs", "too long", "100001 characters, 100000 are"),
        ({"text": "", "label": "a"}, "labels", "empty", "text"),
        ({"text": "t", "label": None}, "labels", "empty", "label"),
        ({"text": "t", "label": "a", "group": [1]}, "labels", "wrong type", "group is not a text"),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "scores", "wrong type", "not a number"),
        ({"sentence1": "a", "sentence2": "b", "score": float("nan")}, "scores", "wrong type", "not a number"),
        ({"sentence1": "a", "sentence2": "b", "label": "maybe"}, "nli", "wrong type", "'maybe' is none of"),
        ({"sentence1": "a", "sentence2": "b", "label": 7}, "duplicates", "wrong type", "'7' is none of"),
    ],
)
def test_bad_rows_are_listed_with_reason_and_line(tmp_path, caplog, record, kind, reason, detail):
    good = {
        "pairs": GOOD,
        "labels": {"text": "t", "label": "a"},
        "scores": {"sentence1": "a", "sentence2": "b", "score": 1},
        "nli": {"sentence1": "a", "sentence2": "b", "label": "neutral"},
        "duplicates": {"sentence1": "a", "sentence2": "b", "label": 0},
    }[kind]
    path = write(tmp_path / "a.jsonl", ["", good, record])
    with pytest.raises(
        DataError, match=rf"1 of 2 rows are bad .*1 x {reason}.*first is a.jsonl:3 .*allows 1.0%"
    ):
        load(path, kind)
    assert [(row["place"], row["reason"]) for row in rejects(path)] == [("a.jsonl:3", reason)]
    assert detail in rejects(path)[0]["detail"]
    with caplog.at_level(logging.WARNING):
        assert load(path, kind, **EVERYTHING).num_rows == 1
    assert f"1 x {reason}" in caplog.text
    assert [row["place"] for row in rejects(path)] == ["a.jsonl:3"]


def test_broken_encodings_take_no_other_row_with_them(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"query": "caf\xe9", "positive": "p"}\n{"query": "q", "positive": "p"}\n'
    )
    assert load(tmp_path / "a.jsonl", **EVERYTHING).num_rows == 1
    (tmp_path / "a.csv").write_bytes(b"query,positive\ncaf\xe9,p\nq,p\n1,2,3\n")
    assert load(tmp_path / "a.csv", **EVERYTHING).num_rows == 1
    assert [(row["place"], row["reason"]) for row in rejects(tmp_path / "a.csv")] == [
        ("a.csv:2", "broken encoding"),
        ("a.csv:4", "wrong type"),
    ]
    bad = pa.array([b"caf\xe9", b"q"]).cast(pa.binary())
    texts = pa.StringArray.from_buffers(2, *bad.buffers()[1:])
    pq.write_table(pa.table({"query": texts, "positive": ["p", "p"]}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", **EVERYTHING)["query"].to_pylist() == ["q"]


def test_parts_give_the_same_rows_and_lines_as_the_whole(tmp_path, monkeypatch):
    records = [
        {"query": f"query {number}", "positive": f"answer {number}" * (number % 7)} for number in range(200)
    ]
    records[150] = records[20]
    path = write(tmp_path / "a.jsonl", records)
    whole, listed = load(path, **EVERYTHING), rejects(path)
    assert {row["reason"] for row in listed} == {"no positive", "duplicate"}
    assert listed[-1] == {"place": "a.jsonl:151", "reason": "duplicate", "detail": "of an earlier row"} or (
        {"place": "a.jsonl:151", "reason": "duplicate", "detail": "of an earlier row"} in listed
    )
    monkeypatch.setattr(text_files, "PART_BYTES", 777)
    (tmp_path / "data" / "mine" / "card.json").unlink()
    assert load(path, **EVERYTHING).equals(whole)
    assert len(list((tmp_path / "data" / "mine").glob("train-*.parquet"))) > 10
    assert sorted(map(repr, rejects(path))) == sorted(map(repr, listed))

    monkeypatch.setattr(columnar, "PART_BYTES", 1)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=30)
    assert load(tmp_path / "a.parquet", **EVERYTHING).equals(whole)
    assert {row["place"] for row in rejects(path)} == {
        row["place"].replace("jsonl", "parquet") for row in listed
    }


def test_duplicates_are_left_out_and_are_no_error(tmp_path):
    assert load(write(tmp_path / "a.jsonl", [GOOD, GOOD, GOOD])).num_rows == 1
    told = [{"text": "t", "label": "x", "group": group} for group in "ab"]  # only says where it came from
    assert load(write(tmp_path / "labels.jsonl", told), "labels").num_rows == 1


def test_duplicates_are_found_however_few_hashes_are_held_at_a_time(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4):
        rows = [{"query": f"q{row % 7}", "positive": f"p{row % (number + 2)}"} for row in range(40)]
        write(folder / f"{number}.jsonl", rows)
    whole, listed = load(folder), rejects(folder)
    assert {row["place"].partition(":")[0] for row in listed} == {f"{number}.jsonl" for number in range(4)}
    held = []
    monkeypatch.setattr(build, "_HASHES_AT_A_TIME", 9)
    repeated = build._repeated
    monkeypatch.setattr(build, "_repeated", lambda hashes: held.append(len(hashes)) or repeated(hashes))
    (tmp_path / "data" / "mine" / "card.json").unlink()
    assert load(folder).equals(whole)
    assert rejects(folder) == listed
    assert len(held) == 18
    assert sum(held) == 160


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"instruction": "Find"}, {"instruction": "Search"}),
        ({"instruction": "Find"}, {}),
        ({"teacher_scores": [1.0]}, {"teacher_scores": [2.0]}),
        ({"negatives": ["n"]}, {"negatives": ["m"]}),
        ({"negatives": ["n"]}, {}),
        ({"positive": ["p", "n"]}, {"positive": ["p"], "negatives": ["n"]}),
        ({"cluster": "a"}, {"cluster": "b"}),
    ],
)
def test_rows_that_differ_in_what_training_sees_are_no_duplicates(tmp_path, one, other):
    records = [GOOD | one, GOOD | other, GOOD | one]
    assert load(write(tmp_path / "a.jsonl", records)).num_rows == 2


def test_columns_are_mapped_and_wrong_ones_get_one_error(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "q", "Answer": "p", "hard": ["n"]}])
    mapped = load(path, columns={"query": "question", "positives": "Answer", "negatives": "hard"})
    assert mapped.to_pylist()[0]["negatives"] == ["n"]
    with pytest.raises(
        DataError, match=r"lacks the column the_question \(did you mean question\?\); answer \(did you"
    ) as error:
        load(path, columns={"query": "the_question", "positives": "answer"})
    assert "It has question, Answer, hard" in str(error.value)
    with pytest.raises(ConfigError, match=r"maps 'the_query'.*did you mean query\?"):
        load(path, columns={"the_query": "question"})
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "columns.parquet")
    with pytest.raises(DataError, match="lacks the column label"):
        load(tmp_path / "columns.parquet", "labels")


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="absent does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match="has nothing to read as format auto"):
        load(tmp_path / "empty")
    with pytest.raises(DataError, match="has no rows"):
        load(write(tmp_path / "none.jsonl", []))
    pq.write_table(pa.table({"text": ["a"] * 9, "label": ["x"] * 9}), tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"cut\.parquet is not a complete Parquet file"):
        load(tmp_path / "cut.parquet", "labels")
    (tmp_path / "hole.parquet").write_bytes(content[:4] + bytes(40) + content[44:])
    with pytest.raises(DataError, match=r"hole\.parquet is damaged"):
        load(tmp_path / "hole.parquet", "labels")
    (tmp_path / "open.csv").write_text('query,positive\n"q,p\n')
    with pytest.raises(DataError, match=r"open\.csv:2 is not CSV"):
        load(tmp_path / "open.csv")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be read to its end"):
        load(tmp_path / "cut.jsonl.gz")
    with pytest.raises(ConfigError, match="name of a built-in source"):
        build.build_user_source("wordnet-glosses", UserSourceConfig(path="a"), tmp_path)
    assert not (tmp_path / "data" / "mine").exists()


def test_locations_beyond_the_disk(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [GOOD])
    monkeypatch.setattr("rayembed.common.stores.ANSWER_SECONDS", 2)
    source = UserSourceConfig(path=path.as_uri())
    build.build_user_source("mine", source, tmp_path / "data")
    assert read_split(tmp_path / "data", "mine", "train").num_rows == 1
    with pytest.raises(DataError, match="none://host/a is not a location that can be read"):
        build.build_user_source("mine", UserSourceConfig(path="none://host/a"), tmp_path / "data")
    unreachable = "s3://bucket/a.parquet?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9"
    with pytest.raises(
        ResourceError, match=r"s3://bucket/a.parquet.* (cannot be read|did not answer).*credentials"
    ):
        build.build_user_source("mine", UserSourceConfig(path=unreachable), tmp_path / "data")


def test_a_build_is_reused_until_files_or_settings_change(tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD])
    load(path)
    file = tmp_path / "data" / "mine" / "train-00000.parquet"
    before = file.stat().st_ino
    load(path, licence="CC0")
    assert file.stat().st_ino == before
    write(path, [GOOD, {"query": "r", "positive": "p"}])
    assert load(path).num_rows == 2


def test_a_full_disk_leaves_whole_parts_and_the_next_run_continues(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.jsonl", [{"query": f"q{number}", "positive": "p"}])
    written = []

    def full_at_the_second(row):
        written.append(row["query"])
        if row["query"] == "q1":
            raise OSError(28, "No space left on device")
        return content_hash(row)

    content_hash = part_writer.content_hash
    monkeypatch.setattr(part_writer, "content_hash", full_at_the_second)
    with pytest.raises(ResourceError, match=r"no space is left.*run the same command again"):
        load(folder)
    (work,) = (tmp_path / "data").glob(".mine.parts-*")
    assert {path.name.split(".")[0] for path in work.iterdir()} == {"part-00000"}, "whole parts only"
    monkeypatch.setattr(part_writer, "content_hash", content_hash)
    read = []
    monkeypatch.setattr(
        part_writer, "read_part", lambda part: read.append(part.file.name) or text_files.JSON.read(part)
    )
    assert load(folder)["query"].to_pylist() == ["q0", "q1", "q2"]
    assert read == ["1.jsonl", "2.jsonl"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".mine.lock", "mine"]


@pytest.mark.ray
def test_ray_actors_build_the_same_and_a_mistake_stops_it(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4):
        write(
            folder / f"{number}.jsonl",
            [{"query": f"q{number} {row}", "positive": "p"} for row in range(9)] + [GOOD],
        )
    here = load(folder)
    monkeypatch.undo()
    build.build_user_source("mine", UserSourceConfig(path=str(folder)), tmp_path / "by-ray")
    assert read_split(tmp_path / "by-ray", "mine", "train").equals(here)
    assert here.num_rows == 37, "the row that all files have is kept once"

    (folder / "2.jsonl").write_text('{"wording": "q", "positive": "p"}\n')
    with pytest.raises(DataError, match=r"2\.jsonl lacks the column query .*It has wording, positive"):
        build.build_user_source("mine", UserSourceConfig(path=str(folder)), tmp_path / "by-ray")

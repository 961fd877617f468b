import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import copy_files

from rayembed.common.errors import ConfigError, DataError, ResourceError
from rayembed.config.data import UserSourceConfig
from rayembed.config.loading import load_recipe
from rayembed.data.build import build_user_source
from rayembed.data.store import read_split
from rayembed.mining import finding, run, teachers
from rayembed.mining.config import MiningRecipe, SentenceTransformersTeacher

TOPICS = ("apple", "river", "stone", "cloud")


class LetterCounts:
    """Vectors of letter counts: texts with the same letters are near each other."""

    encoded: list[str] = []
    asked: set[tuple[str, str, str | None]] = set()

    def __init__(self, config):
        pass

    def encode(self, texts, side, instruction):
        LetterCounts.encoded += texts
        LetterCounts.asked |= {(side, text, instruction) for text in texts}
        return np.array([[1 + text.count(chr(97 + letter)) for letter in range(26)] for text in texts])


@pytest.fixture
def source(home):
    rows = [
        {
            "query": f"{topic} {number}",
            "positive": f"{topic} document {number}",
            "cluster": f"{topic}{number // 2}",
        }
        for topic in TOPICS
        for number in range(6)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "teacher").mkdir()
    (home / "teacher" / "config.json").write_text("{}")
    return home


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(teachers, "SHARD_ROWS", 7)
    monkeypatch.setitem(teachers._LOADERS, "sentence-transformers", LetterCounts)
    monkeypatch.setattr(LetterCounts, "encoded", [])
    monkeypatch.setattr(LetterCounts, "asked", set())


def recipe(**source):
    return MiningRecipe.model_validate(
        {
            "data": {"sources": {"mine": UserSourceConfig(path="rows.jsonl")}},
            "teachers": {
                "letters": {"kind": "sentence-transformers", "path": "teacher"},
                "words": {"kind": "bm25"},
            },
            "sources": [{"source": "mine", "top_k": 10, "negatives_per_query": 2, **source}],
            "actors": 0,
        }
    )


def test_a_mined_source_is_an_ordinary_source_with_the_report_beside_it(source):
    (result,) = run.mine(recipe())
    build_user_source("mined", UserSourceConfig(path=str(result.path)), source / "data")
    table = read_split(source / "data", "mined", "train")
    assert table.num_rows == 24
    for row in table.to_pylist():
        assert len(set(row["negatives"])) == 2
        assert not set(row["negatives"]) & set(row["positives"])
    cluster_of = {row["positives"][0]: row["cluster"] for row in table.to_pylist()}
    assert all(cluster_of[text] != row["cluster"] for row in table.to_pylist() for text in row["negatives"])
    report = json.loads((result.path.parent / "report.json").read_text())
    assert report["counts"]["rows"] == 24
    assert set(report["teachers"]) == {"letters", "words"}
    assert 0 <= report["teacher_overlap"]["letters | words"] <= 1
    assert sum(report["teachers"]["letters"]["candidates_by_share_of_positive"]) == 24 * 10
    assert "Teacher letters" in (result.path.parent / "report.md").read_text()


def test_rows_bring_the_scores_of_a_teacher_for_distillation(source):
    (result,) = run.mine(recipe(fill="random"))
    build_user_source("mined", UserSourceConfig(path=str(result.path)), source / "data")
    for row in read_split(source / "data", "mined", "train").to_pylist():
        texts = [row["query"], *row["positives"], *row["negatives"]]
        vectors = np.array([[1 + text.count(chr(97 + n)) for n in range(26)] for text in texts], float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert row["teacher_scores"] == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_filters_run_again_without_encoding(source, node, monkeypatch, request, stored):
    if stored:  # and the second run is on another node
        s3 = request.getfixturevalue("s3")
        store, folder = s3.open("bucket/mining")
        copy_files(str(source), folder, destination_filesystem=store)
        monkeypatch.setenv("RAYEMBED_HOME", s3.uri("bucket/mining"))
    first = run.mine(recipe())[0]
    encoded = len(LetterCounts.encoded)
    assert encoded == 48
    node("b")
    again = run.mine(recipe(filters=[{"name": "shifted-rank", "value": 3}]), filters_only=True)[0]
    assert len(LetterCounts.encoded) == encoded
    assert again.report != first.report
    with pytest.raises(DataError, match="no complete candidates of teacher letters"):
        run.mine(recipe(top_k=9), filters_only=True)


def test_the_window_grows_for_queries_that_the_filters_leave_short(source):
    settings = {"filters": [{"name": "percentage", "value": 0.95}], "teachers": ["letters"], "fill": "none"}
    whole = pq.read_table(run.mine(recipe(**settings, top_k=24))[0].path)
    assert all(len(negatives) == 2 for negatives in whole["negatives"].to_pylist())
    LetterCounts.encoded.clear()
    (narrow,) = run.mine(recipe(**settings, top_k=2))
    assert pq.read_table(narrow.path) == whole
    assert LetterCounts.encoded == []  # queries that are searched again are not encoded again
    widened = json.loads((narrow.path.parent / "report.json").read_text())["widened"]
    assert list(widened) == ["4", "8", "16", "32"]
    assert 24 == widened["4"] >= widened["8"] > widened["32"] > 0
    assert f"needed 32 candidates | {widened['32']}" in (narrow.path.parent / "report.md").read_text()


def test_a_window_that_stays_short_ends_and_filters_alone_search_no_further(source, caplog):
    hopeless = {"filters": [{"name": "absolute", "value": 0}], "teachers": ["letters"], "top_k": 1}
    for fill, windows, fills in (("random", [2, 4, 8], 48), ("none", [2, 4, 8, 16], 0)):
        (result,) = run.mine(recipe(**hopeless, fill=fill))
        report = json.loads((result.path.parent / "report.json").read_text())
        assert report["widened"] == {str(window): 24 for window in windows}
        assert report["counts"]["random_fills"] == fills
    run.mine(recipe(**hopeless | {"filters": [{"name": "naive"}], "top_k": 2}))
    run.mine(recipe(**hopeless | {"top_k": 2}, fill="none"), filters_only=True)
    assert "24 queries have too few negatives among their first 16 candidates; without" in caplog.text


def test_a_run_that_was_cut_off_does_only_what_is_missing_and_ends_equal(source, monkeypatch):
    whole = pq.read_table(run.mine(recipe())[0].path)
    work = source / "mined" / "mine" / "work" / "letters"
    removed = next(work.glob("document-*")) / "00001.npy"
    before = np.load(removed)
    removed.unlink()
    for part in work.parent.glob("*/candidates-*/00002.parquet"):
        part.unlink()
    monkeypatch.delattr(finding.IndexWords, "__call__")  # the index of words is there
    LetterCounts.encoded.clear()
    assert pq.read_table(run.mine(recipe())[0].path) == whole
    assert len(LetterCounts.encoded) == 7
    np.testing.assert_array_equal(np.load(removed), before)


def test_vectors_of_another_teacher_or_instruction_are_not_reused(source):
    run.mine(recipe())
    run.mine(recipe(instruction="Find it"))
    assert len(LetterCounts.encoded) == 48 + 24  # the documents carry no instruction
    (source / "teacher" / "pytorch_model.bin").write_text("other weights")
    run.mine(recipe(instruction="Find it"))
    assert len(LetterCounts.encoded) == 48 + 24 + 48


def write_rows_with_instructions(folder, *instructions):
    """Every query once with each instruction, and with a positive of its own each time."""
    rows = [
        {"query": f"{topic} {number}", "positive": f"{topic} {instruction} document {number}"}
        | ({"instruction": instruction} if instruction else {})
        for number, topic in enumerate(TOPICS * 3)
        for instruction in instructions
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_is_encoded_with_its_own_instruction_and_keeps_it(source):
    write_rows_with_instructions(source, None, "Own", "Other")
    settings = {"instruction": "Find it", "teachers": ["letters"]}
    (result,) = run.mine(recipe(**settings))
    queries = {(text, instruction) for side, text, instruction in LetterCounts.asked if side == "query"}
    rows = pq.read_table(result.path).to_pylist()
    assert queries == {(row["query"], row["instruction"] or "Find it") for row in rows}
    assert len(queries) == len(rows) == 36
    assert {instruction for side, _, instruction in LetterCounts.asked if side == "document"} == {None}
    LetterCounts.encoded.clear()
    run.mine(recipe(**settings))
    assert LetterCounts.encoded == []
    content = (source / "rows.jsonl").read_text()
    (source / "rows.jsonl").write_text(content.replace('"instruction": "Other"', '"instruction": "Another"'))
    run.mine(recipe(**settings))
    assert len(LetterCounts.encoded) == 36  # queries alone: the documents are as they were


def test_vectors_are_in_the_order_of_the_texts_whatever_their_instructions(tmp_path):
    texts = ["aa", "b", "ccc", "a", "bb"]
    path = teachers.write_texts(pa.array(texts), tmp_path / "t.parquet", pa.array(["x", "", "x", "y", ""]))
    job = teachers.VectorJob(path, tmp_path, "query", "source")
    teacher = SentenceTransformersTeacher(kind="sentence-transformers", path="unused")
    teachers.EncodeShard(teacher, [job])({"job": 0, "shard": 0})
    expected = teachers.unit_vectors(LetterCounts(None), texts, "query", None)
    np.testing.assert_array_equal(job.open()[0], expected)
    assert {(text, instruction) for _, text, instruction in LetterCounts.asked if instruction} == {
        ("aa", "x"), ("b", "source"), ("ccc", "x"), ("a", "y"), ("bb", "source"),
    }  # fmt: skip


def test_documents_of_a_symmetric_source_carry_the_instruction_of_all_queries_or_the_source_s(source, caplog):
    settings = {"instruction": "Find it", "symmetric": True, "teachers": ["letters"]}

    def of_documents():
        LetterCounts.asked.clear()
        run.mine(recipe(**settings))
        return {instruction for side, _, instruction in LetterCounts.asked if side == "document"}

    write_rows_with_instructions(source, "Own")
    assert of_documents() == {"Own"}
    assert "is symmetric" not in caplog.text
    write_rows_with_instructions(source, "Own", None)
    assert of_documents() == {"Find it"}
    assert "is symmetric and its queries carry 2 instructions" in caplog.text


def test_known_positives_tell_the_share_of_false_negatives(source):
    known = pa.table(
        {"query": ["apple 0", "not there"], "positives": [["apple document 4", "apple document 5"], ["x"]]}
    )
    pq.write_table(known, source / "known.parquet")
    naive = run.mine(recipe(teachers=["words"], filters=[{"name": "naive"}], known_positives="known.parquet"))
    report = json.loads((naive[0].path.parent / "report.json").read_text())
    row = next(row for row in pq.read_table(naive[0].path).to_pylist() if row["query"] == "apple 0")
    right = {"apple document 4", "apple document 5"} & set(row["negatives"])
    assert report["false_negatives"]["chosen"] == len(right) / 2


def test_a_corpus_beside_the_rows_is_searched_too(source):
    pq.write_table(pa.table({"text": ["apple apple 0 extra"]}), source / "corpus.parquet")
    (result,) = run.mine(recipe(corpus="corpus.parquet", filters=[{"name": "naive"}]))
    assert any("apple apple 0 extra" in row["negatives"] for row in pq.read_table(result.path).to_pylist())


def test_an_approximate_index_tells_its_recall_in_the_log_and_the_report(source, monkeypatch, caplog):
    caplog.set_level("INFO")
    (result,) = run.mine(recipe(index="ivf"))  # so few documents are one cluster
    assert "letters: ivf finds 100.0 % of the exact results" in caplog.text
    report = json.loads((result.path.parent / "report.json").read_text())
    assert report["recall"] == {"letters": 1.0}
    assert "index finds, letters | 100.0%" in (result.path.parent / "report.md").read_text()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ResourceError, match=r"pip install 'rayembed\[faiss\]'"):
        run.mine(recipe(index="hnsw"))


def test_recipes_that_make_no_sense_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="nprobe belongs to index ivf, not hnsw"):
        recipe(index="hnsw", nprobe=3)
    with pytest.raises(ValueError, match="no teacher is named 'other'"):
        recipe(teachers=["other"])
    path = tmp_path / "recipe.yaml"
    path.write_text("teachers: {words: {kind: bm25}}\nsources: [{source: mine, topk: 3}]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'sources.mine.topk'; did you mean 'top_k'"):
        load_recipe(path, MiningRecipe)


def test_all_that_is_not_there_is_told_before_anything_is_encoded(source):
    raw = recipe(corpus="no.parquet").model_dump(mode="json")
    raw["teachers"]["other"] = {"kind": "checkpoint", "path": "nowhere"}
    raw["sources"] += [{"source": "simlex999"}, {"source": "unknown"}]
    mistakes = r"(?s)4 mistakes.*other: .* no folder.*no.parquet does not.*simlex999 has scores.*'unknown'"
    with pytest.raises(DataError, match=mistakes):
        run.mine(MiningRecipe.model_validate(raw))
    assert LetterCounts.encoded == []


@pytest.mark.ray
def test_actors_find_the_same_and_report_a_mistake_in_one_sentence(source):
    settings = recipe(teachers=["words"])
    alone = pq.read_table(run.mine(settings)[0].path)
    for part in (source / "mined").rglob("candidates-*/*.parquet"):
        part.unlink()
    assert pq.read_table(run.mine(settings.model_copy(update={"actors": 2}))[0].path) == alone
    (source / "rows.jsonl").write_text('{"query": "?", "positive": "!"}\n{"query": "??", "positive": "!!"}\n')
    with pytest.raises(DataError, match="none of the 2 documents has a word"):
        run.mine(settings.model_copy(update={"actors": 2}))

import dataclasses
import json
from pathlib import Path

import mteb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import ConfigError, DataError, ResourceError, UserError
from rayembed.data.sources import SOURCES
from rayembed.evaluation.builtin_tasks import TASKS
from rayembed.evaluation.catalogue import OFFLINE, PACKAGES, QUICKSTART, Catalogue
from rayembed.evaluation.encoder import ENCODE_OPTIONS, OURS, EngineEncoder, evaluate_task
from rayembed.evaluation.local_tasks import LOCAL_TYPES
from rayembed.evaluation.results import Candidate, ResultStore
from tests.evaluation.conftest import WordEngine

ROWS = {
    "Classification": {"text": ["good a", "bad b", "good c", "bad d"] * 5, "label": [1, 0, 1, 0] * 5},
    "Clustering": {
        "sentences": ["cat one", "cat two", "dog three", "dog four"] * 9,
        "labels": [0, 0, 1, 1] * 9,
    },
    "ClusteringLegacy": {
        "sentences": [["cat a", "cat b", "dog c", "dog d"]],
        "labels": [["c", "c", "d", "d"]],
    },
    "STS": {"sentence1": ["a b", "c d", "e f"], "sentence2": ["a b", "c x", "y z"], "score": [5.0, 3.0, 0.0]},
    "PairClassification": {"sentence1": ["a b", "c d"], "sentence2": ["a b", "x y"], "labels": [1, 0]},
    "BitextMining": {"sentence1": ["eins zwei", "drei"], "sentence2": ["eins zwei", "drei"]},
    "Summarization": {
        "text": ["a b c", "d e f"],
        "human_summaries": [["a b"], ["d e"]],
        "machine_summaries": [["a b", "x", "q a"], ["d e", "y", "d r"]],
        "relevance": [[5.0, 1.0, 2.0], [5.0, 1.0, 3.0]],
    },
}


@pytest.fixture
def task_file(tmp_path):
    """One own task of each of the nine types."""
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "pets", "text": f"about cat number {n}"} for n in range(6)]
    queries = [{"_id": f"q{n}", "text": f"cat number {n}"} for n in range(3)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (beir / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    judged = "\n".join(f"q{n}\td{n}\t1" for n in range(3))
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    lists = {"query-id": ["q0", "q1", "q2"], "corpus-ids": [["d5", "d0"], ["d1", "d4"], ["d3", "d2"]]}
    pq.write_table(pa.table(lists), beir / "candidates.parquet")
    entries = [
        "- {name: OwnRetrieval, type: Retrieval, folder: beir, instruction: Find the animal}",
        "- {name: OwnReranking, type: Reranking, folder: beir, candidates: candidates.parquet}",
    ]
    for kind, columns in ROWS.items():
        pq.write_table(pa.table(columns), tmp_path / f"{kind}.parquet")
        train = f", train: {kind}.parquet" if kind == "Classification" else ""
        entries.append(f"- {{name: Own{kind}, type: {kind}, test: {kind}.parquet{train}}}")
    path = tmp_path / "tasks.yaml"
    path.write_text("tasks:\n" + "\n".join(f"  {entry}" for entry in entries) + "\n")
    return path


def test_own_tasks_of_all_types_are_scored(task_file, tmp_path):
    catalogue = Catalogue(tmp_path, (task_file,))
    selection = catalogue.select("own")
    assert {name.removeprefix("Own") for name in selection.tasks} == set(LOCAL_TYPES)
    store, candidate = ResultStore(tmp_path / "ours"), Candidate("own model", "a" * 64, Path("none"))
    theirs = mteb.ResultCache(tmp_path / "theirs")
    scores = {}
    for reference in selection.references:
        encoder = EngineEncoder(WordEngine("a" * 64), "own model")
        result = evaluate_task(encoder, catalogue.load(reference))
        scores[reference.name] = result.get_score()
        store.save(candidate, result)
        loaded = store.load(candidate, catalogue.load(reference))
        assert loaded.get_score() == pytest.approx(result.get_score(), abs=1e-6)
        assert loaded.scores["test"][0][OURS] == result.scores["test"][0][OURS]
        mteb.evaluate(
            encoder, catalogue.load(reference), cache=theirs, co2_tracker=False, encode_kwargs=ENCODE_OPTIONS
        )
    # mteb reads our folder as its own and finds there what it would have written itself
    frames = [
        mteb.ResultCache(cache.cache_path).load_results().to_dataframe().set_index("task_name").sort_index()
        for cache in (mteb.ResultCache(tmp_path / "ours"), theirs)
    ]
    assert frames[0].equals(frames[1])
    assert set(frames[0].index) == set(selection.tasks)
    found = [
        {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "ours" / "results", tmp_path / "theirs" / "results")
    ]
    assert found[0].keys() == found[1].keys()
    for name, path in found[0].items():
        if name.suffix == ".json":
            mine, other = (json.loads(text.read_text()) for text in (path, found[1][name]))
            assert mine.keys() == other.keys()
            assert json.dumps(mine.get("scores"), sort_keys=True) == json.dumps(
                other.get("scores"), sort_keys=True
            )
    samples = store.load(
        candidate, catalogue.load(catalogue.select(tasks=["OwnClassification"]).references[0])
    )
    rows = samples.scores["test"][0][OURS]["samples"]
    assert len(rows) == 20  # of the test rows, not of the ten draws
    assert np.mean(list(rows.values())) == pytest.approx(scores["OwnClassification"], abs=1e-5)
    for perfect in ("OwnRetrieval", "OwnReranking", "OwnPairClassification", "OwnBitextMining", "OwnSTS"):
        assert scores[perfect] == pytest.approx(1.0), scores
    assert scores["OwnClustering"] > 0.5


def test_a_title_is_read_with_its_text(task_file, tmp_path):
    catalogue = Catalogue(tmp_path, (task_file,))
    task = catalogue.load(catalogue.select(tasks=["OwnRetrieval"]).references[0])
    assert task.dataset["default"]["test"]["corpus"]["text"][0] == "pets about cat number 0"
    assert task.metadata.prompt == "Find the animal"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: A, type: Retrievals, folder: x}", "did you mean Retrieval"),
        ("{name: A, type: Retrieval}", "give `folder`, or"),
        ("{name: A, type: Reranking, folder: x}", "needs `candidates`"),
        ("{name: A, type: Classification, test: x}", "and `train`"),
        ("{name: A, type: STS, test: x, tset: y}", "tset"),
        ("{name: ../A, type: STS, test: x}", "name"),
    ],
)
def test_a_bad_entry_is_refused_with_its_reason(tmp_path, entry, message):
    path = tmp_path / "tasks.yaml"
    path.write_text(f"tasks:\n  - {entry}\n")
    with pytest.raises(ConfigError, match=message):
        Catalogue(tmp_path, (path,)).select("own")


def test_bad_files_are_named(task_file, tmp_path):
    catalogue = Catalogue(tmp_path, (task_file,))
    pq.write_table(pa.table({"sentence1": ["a"], "other": ["b"]}), tmp_path / "STS.parquet")
    with pytest.raises(DataError, match=r"STS.parquet lacks the columns \['sentence2', 'score'\]"):
        catalogue.load(catalogue.select(tasks=["OwnSTS"]).references[0])
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tnone\t1\n")
    with pytest.raises(DataError, match="judges query q0 and document none"):
        catalogue.load(catalogue.select(tasks=["OwnRetrieval"]).references[0])


def test_benchmarks_have_a_name_and_a_version(tmp_path):
    catalogue = Catalogue(tmp_path)
    assert [len(catalogue.select(name).references) for name in ("MTEB(eng, v2)", "BEIR 15")] == [41, 26]
    assert len(catalogue.select("BEIR 15").tasks) == 15
    assert catalogue.select("MTEB(Multilingual)").benchmark == "MTEB(Multilingual, v2)"
    assert len(catalogue.select(QUICKSTART).tasks) == 9
    assert set(catalogue.select(OFFLINE).tasks) == set(TASKS)
    types = {TASKS[name].type for name in TASKS}
    assert len(TASKS) >= 12
    assert types == set(LOCAL_TYPES) - {"ClusteringLegacy", "Summarization"}
    assert len(catalogue.select(PACKAGES).tasks) == 14


def test_tasks_that_cannot_be_made_here_are_all_named_at_once(tmp_path, monkeypatch):
    for name in ("debian-descriptions", "debian-sections"):
        without_apt = dataclasses.replace(SOURCES[name], missing=lambda: "there is no apt")
        monkeypatch.setitem(SOURCES, name, without_apt)
    catalogue = Catalogue(tmp_path)
    selection = catalogue.select(tasks=["DebianRetrieval", "DebianSectionClustering"])
    with pytest.raises(
        ResourceError, match=r"DebianRetrieval, DebianSectionClustering: there is no apt.*packages"
    ):
        catalogue.prepare(selection.references)


def test_an_aggregate_is_run_as_its_parts(tmp_path):
    references = Catalogue(tmp_path).select(tasks=["CQADupstackRetrieval"]).references
    assert len(references) == 12
    assert {reference.part_of for reference in references} == {"CQADupstackRetrieval"}


def test_unknown_names_offer_the_nearest(tmp_path):
    catalogue = Catalogue(tmp_path)
    with pytest.raises(UserError, match="did you mean DocstringRetrieval"):
        catalogue.select(tasks=["docstringretreival"])
    with pytest.raises(UserError, match="unknown task 'MSMARC'; did you mean MSMARCO"):
        catalogue.select(tasks=["MSMARC"])
    with pytest.raises(UserError, match=r"unknown benchmark 'MTEB\(eng,v1\)'; did you mean MTEB\(eng, v1\)"):
        catalogue.select("MTEB(eng,v1)")
    with pytest.raises(UserError, match="--list"):
        catalogue.select("zzzz")
    assert isinstance(catalogue.load(catalogue.select(tasks=["STS12"]).references[0]), mteb.AbsTask)

import json
from collections import Counter

import numpy as np
import pytest
from filelock import FileLock

from rayembed.common.errors import ResourceError
from rayembed.engine.vector_formats import VectorForm
from rayembed.evaluation import run, shards
from rayembed.evaluation.catalogue import Catalogue, TaskReference
from rayembed.evaluation.local_tasks import TaskDescription, local_task
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.shards import ShardEncoder, merged, shard_texts
from rayembed.evaluation.units import Shard, TextSet, UnitQueue, task_units, text_sets
from rayembed.mining.search import exact_top_k

TASKS = ["DocstringRetrieval", "DocstringReranking", "VaderTweets", "WordSim353"]


def evaluate(data_dir, output, **changes):
    return run.run("good", output=output, data_dir=data_dir, tasks=TASKS, actors=0, **changes)


def encoded_texts(engines) -> int:
    return sum(len(texts) for _, texts in engines["good"].calls)


def test_a_corpus_that_is_nearly_another_one_is_encoded_once(engines, tmp_path, monkeypatch):
    """The second begins with one more document, so that none of its shards is the same."""
    documents = [f"document number {number} of them all" for number in range(40)]
    for name, corpus in (("one", documents), ("two", ["first of all of them", *documents])):
        (tmp_path / name / "qrels").mkdir(parents=True)
        rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(corpus)]
        (tmp_path / name / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": f"which in {name}"}))
        (tmp_path / name / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    entries = [f"- {{name: Own{name}, type: Retrieval, folder: {name}}}\n" for name in ("one", "two")]
    (tmp_path / "own.yaml").write_text("tasks:\n" + "".join(entries))
    for large, times in ((99, 2), (2, 1)):
        monkeypatch.setattr(shards, "LARGE", large)
        engines["good"].calls.clear()
        run.run("good", output=tmp_path / str(large), benchmark="own", task_files=[tmp_path / "own.yaml"],
                actors=0, shard_tokens=60)  # fmt: skip
        encoded = Counter(text for _, texts in engines["good"].calls for text in texts)
        assert {encoded[text] for text in documents} == {times}
        assert not list((tmp_path / str(large)).glob("embeddings/*/*"))


def test_smaller_vectors_are_scored_without_encoding_again(engines, data_dir, tmp_path):
    whole = evaluate(data_dir, tmp_path / "whole", cache=tmp_path / "cache")
    assert whole == evaluate(data_dir, tmp_path / "plain")
    engines["good"].calls.clear()
    form = VectorForm(dimensions=3)
    cut = evaluate(data_dir, tmp_path / "cut", cache=tmp_path / "cache", vectors=form)
    assert engines["good"].calls == []
    assert cut != whole
    assert cut == evaluate(data_dir, tmp_path / "cut again", vectors=form)


def test_shards_score_as_whole_tasks_do(engines, data_dir, tmp_path, monkeypatch):
    attached, attach = set(), ShardEncoder.attach

    def attaching(encoder, task, shards):
        attached.update((task.metadata.name, shard.side) for shard in shards)
        attach(encoder, task, shards)

    monkeypatch.setattr(ShardEncoder, "attach", attaching)
    whole = evaluate(data_dir, tmp_path / "whole")
    divided = evaluate(data_dir, tmp_path / "shards", shard_tokens=30, keep_embeddings=True)
    for task in TASKS:
        assert divided[task]["trained"] == pytest.approx(whole[task]["trained"], abs=1e-6)
    # The vectors of a corpus are not read again to score what its shards have found.
    assert {side for task, side in attached if task == "DocstringRetrieval"} == {"query"}
    assert ("DocstringReranking", "document") in attached
    stored = [path.name for path in tmp_path.glob("shards/embeddings/*/*/*.safetensors")]
    assert sum("document" in name and "found" in name for name in stored) > 3
    assert sum("-text-" in name for name in stored) > 3
    evaluate(data_dir, tmp_path / "cleaned", shard_tokens=30)
    assert not list(tmp_path.glob("cleaned/embeddings/*/*"))


def test_an_interrupted_evaluation_repeats_no_shard_and_a_torn_one_is_done_again(engines, data_dir, tmp_path):
    calls = engines["good"].calls
    evaluate(data_dir, tmp_path, shard_tokens=30, keep_embeddings=True)
    first = encoded_texts(engines)
    for result in (tmp_path / "trained").rglob("*.json"):
        result.unlink()
    for found in tmp_path.glob("embeddings/*/*/*.found.safetensors"):
        found.unlink()
    calls.clear()
    again = evaluate(data_dir, tmp_path, shard_tokens=30, keep_embeddings=True)
    small_tasks_and_training_texts = encoded_texts(engines)
    assert small_tasks_and_training_texts < first

    for result in (tmp_path / "trained").rglob("*.json"):
        result.unlink()
    for found in tmp_path.glob("embeddings/*/*/*.found.safetensors"):
        found.unlink()
    torn = sorted(tmp_path.glob("embeddings/*/DocstringRetrieval*/*document*vectors*"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    calls.clear()
    repaired = evaluate(data_dir, tmp_path, shard_tokens=30, keep_embeddings=True)
    assert repaired == again
    one_shard = encoded_texts(engines) - small_tasks_and_training_texts
    assert 0 < one_shard <= 4


def test_a_second_evaluation_of_the_same_folder_is_refused(engines, data_dir, tmp_path):
    with (
        FileLock(tmp_path / ".evaluation.lock"),
        pytest.raises(ResourceError, match="another evaluation is writing to"),
    ):
        evaluate(data_dir, tmp_path)
    assert evaluate(data_dir, tmp_path)["WordSim353"]["trained"] is not None


def test_searching_in_parts_finds_what_searching_the_whole_does():
    random = np.random.default_rng(0)
    queries, documents = random.standard_normal((5, 8)), random.standard_normal((100, 8))
    parts = [exact_top_k(queries, [documents[start : start + 30]], 10) for start in range(0, 100, 30)]
    best = parts[0]
    for number, (scores, positions) in enumerate(parts[1:], start=1):
        best = merged(best, (scores, positions + 30 * number), 10)
    whole = exact_top_k(queries, [documents], 10)
    assert np.allclose(best[0], whole[0])
    assert np.array_equal(best[1], whole[1])


def test_shards_cover_the_lists_of_the_older_clustering_protocol():
    rows = {
        "sentences": [["a", "b", "c"], ["d"], ["e", "f", "g"]],
        "labels": [["x", "y", "x"], ["x"], ["x", "y", "z"]],
    }
    task = local_task(TaskDescription("Sets", "ClusteringLegacy", "own", None, "Sets."), {"test": rows})
    (texts,) = text_sets(task)
    assert (texts.texts, texts.divisible) == (7, True)
    parts = [shard_texts(task, Shard("default", "test", "text", index, 3)) for index in range(3)]
    assert [text for part in parts for text in part] == list("abcdefg")
    assert all(parts)


def test_large_tasks_go_first_and_wait_for_their_shards():
    model = Candidate("trained", "f" * 64, checkpoint=__file__)
    huge = [
        TextSet("default", "test", "query", 10, 440, divisible=True),
        TextSet("default", "test", "document", 100, 44_000, divisible=True),
    ]
    small = [TextSet("default", "test", "text", 10, 4_400, divisible=False)]
    units = task_units(model, TaskReference("Small", "mteb"), small, max_length=512, shard_tokens=2_000)
    units += task_units(model, TaskReference("Huge", "mteb"), huge, max_length=512, shard_tokens=2_000)
    queue = UnitQueue(units)
    order = []
    while (unit := queue.take()) is not None:
        order.append(str(unit).removeprefix("trained "))
        queue.done(unit)
    assert order[0] == "Huge default/test query 1/1"
    assert [name.split()[-1] for name in order[1:6]] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert order[6:] == ["Huge", "Small"]


def test_sizes_of_registry_tasks_are_known_without_their_rows():
    catalogue = Catalogue(None)
    selection = catalogue.select("MTEB(eng, v1)")
    assert (len(selection.tasks), len(selection.references)) == (56, 67)
    largest = max(
        (sum(texts.tokens(512) for texts in text_sets(catalogue.load(reference))), reference.name)
        for reference in selection.references
        if reference.name in ("MSMARCO", "NFCorpus", "CQADupstackTexRetrieval")
    )
    assert largest[1] == "MSMARCO"
    assert largest[0] > 6e8

import json
import logging
import os
import time
from pathlib import Path

import pytest
import ray

import rayembed
from rayembed.common.errors import ResourceError, UserError
from rayembed.common.ray_cluster import connect
from rayembed.common.ray_work import ATTEMPTS
from rayembed.evaluation import run, worker
from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.catalogue import Catalogue, TaskReference
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import Candidate, ResultStore
from rayembed.evaluation.scores import format_table
from rayembed.evaluation.units import Unit
from rayembed.evaluation.worker import EvaluationSetup, check_bm25
from tests.evaluation import conftest
from tests.evaluation.conftest import WordEngine, WordWorker, pool, units_of

TASKS = ["DocstringRetrieval", "VaderTweets", "WordSim353"]


def evaluate(data_dir: Path, output: Path, tasks: list[str] = TASKS, precision="auto"):
    return run.run(
        "good",
        output=output,
        data_dir=data_dir,
        baseline=("untrained", "base"),
        with_bm25=True,
        tasks=tasks,
        actors=0,
        precision=precision,
    )


def encodes(engines: dict[str, WordEngine]) -> int:
    return sum(len(engine.calls) for engine in engines.values())


def test_one_run_leaves_the_scores_and_a_result_a_task(engines, data_dir, tmp_path):
    scores = evaluate(data_dir, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"tasks": scores}
    assert scores["DocstringRetrieval"]["metric"] == "ndcg_at_10"
    assert scores["DocstringRetrieval"]["bm25"] > 0.9
    assert scores["WordSim353"]["bm25"] is None
    assert all(0 < row[column] <= 1 for row in scores.values() for column in ("base", "trained"))
    assert (tmp_path / "results" / "rayembed__trained" / ("good" * 16) / "VaderTweets.json").is_file()
    assert (tmp_path / "untrained" / ("base" * 4) / "WordSim353.details.json").is_file()


def test_the_command_prints_the_table(engines, data_dir, tmp_path, capsys):
    own = {"output": tmp_path, "data_dir": data_dir, "tasks": "VaderTweets", "actors": 0}
    scores = rayembed.evaluate(checkpoint="good", **own)
    assert format_table(scores) in capsys.readouterr().out


def test_tasks_of_the_registry_meet_the_bm25_of_mteb(monkeypatch, tmp_path):
    registry, own = TaskReference("SciFact", "mteb"), TaskReference("Mine", "own")
    check_bm25([own])
    monkeypatch.setattr(worker, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"needs the package PyStemmer.*rayembed\[bm25\]"):
        check_bm25([own, registry])
    searched = []
    monkeypatch.setattr(worker, "evaluate_task", lambda model, task: searched.append(model))
    working = worker.EvaluationWorker(EvaluationSetup(Catalogue(tmp_path), InstructionPolicy(), tmp_path))
    monkeypatch.setattr(working, "_task", lambda reference: None)
    for reference in (registry, own):
        working.run(Unit(Candidate("bm25", "r", None), reference, 1.0))
    assert [type(model) for model in searched] == [worker.RegistryBM25, worker.BM25Baseline]


@pytest.mark.parametrize("stored", [False, True])
def test_a_second_run_encodes_nothing(engines, data_dir, tmp_path, node, stored, request):
    output = request.getfixturevalue("s3").uri("bucket/results") if stored else tmp_path
    first = evaluate(data_dir, output)
    assert encodes(engines) > 0
    for engine in engines.values():
        engine.calls.clear()
    node("b")
    second = evaluate(data_dir, output)
    assert encodes(engines) == 0
    assert second["WordSim353"]["trained"] == pytest.approx(first["WordSim353"]["trained"], abs=1e-6)


def test_a_torn_result_is_run_again_with_a_warning(engines, data_dir, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rayembed"), "propagate", True)
    evaluate(data_dir, tmp_path)
    torn = tmp_path / "results" / "rayembed__trained" / ("good" * 16) / "WordSim353.json"
    whole = json.loads(torn.read_text())
    torn.write_text(torn.read_text()[:40])
    engines["good"].calls.clear()
    engines["base"].calls.clear()
    evaluate(data_dir, tmp_path)
    assert engines["good"].calls
    assert not engines["base"].calls
    assert "not a complete result" in caplog.text
    assert json.loads(torn.read_text())["scores"] == whole["scores"]


def test_other_rows_make_a_stored_result_stale(data_dir, tmp_path):
    store, candidate = ResultStore(tmp_path), Candidate("trained", "f" * 64, Path("good"))
    task = load_task("WordSim353", data_dir)
    store.save(candidate, evaluate_task(EngineEncoder(WordEngine(), "good"), task))
    assert store.load(candidate, task) is not None
    task.metadata = task.metadata.model_copy(update={"dataset": {"path": "wordsim353", "revision": "other"}})
    assert store.load(candidate, task) is None


def test_a_result_in_another_number_format_is_stale_unless_any_will_do(engines, data_dir, tmp_path):
    def formats():
        [details] = tmp_path.glob("trained/*/WordSim353.details.json")
        [entries] = json.loads(details.read_text()).values()
        return {entry["precision"] for entry in entries}

    evaluate(data_dir, tmp_path, tasks=["WordSim353"])
    assert formats() == {"fp32"}
    engines["good"].precision = "bf16"  # what `auto` means on another node
    for precision, made_again in (("auto", False), ("fp32", False), ("bf16", True)):
        engines["good"].calls.clear()
        evaluate(data_dir, tmp_path, tasks=["WordSim353"], precision=precision)
        assert bool(engines["good"].calls) is made_again, precision
    assert formats() == {"bf16"}


def test_bad_requests_say_what_to_do(engines, data_dir, tmp_path):
    with pytest.raises(UserError, match="did you mean VaderTweets"):
        evaluate(data_dir, tmp_path, tasks=["VaderTweet"])
    with pytest.raises(UserError, match="cannot name a model"):
        run.run("good", output=tmp_path, data_dir=data_dir, baseline=("a/b", "base"), actors=0)
    assert not list(tmp_path.iterdir())


def test_the_table_has_means_only_over_complete_columns():
    scores = {
        "VaderTweets": {"metric": "accuracy", "base": 0.5, "bm25": None, "trained": 0.75},
        "DocstringRetrieval": {"metric": "ndcg_at_10", "base": 0.1, "bm25": 0.5, "trained": 0.6},
    }
    lines = format_table(scores).splitlines()
    assert lines[0].split() == ["task", "metric", "BM25", "untrained", "trained", "change"]
    assert lines[2].split() == ["VaderTweets", "accuracy", "-", "0.500", "0.750", "+0.250"]
    assert lines[-1].split() == ["mean", "of", "all", "2", "-", "0.300", "0.675", "+0.375"]


@pytest.fixture(scope="module")
def cluster():
    ray.cloudpickle.register_pickle_by_value(conftest)  # workers do not see the tests
    connect(num_cpus=2)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_an_idle_actor_takes_the_unit_of_a_dead_one_that_nothing_can_replace(cluster, data_dir, tmp_path):
    candidate = Candidate("trained", "f" * 64, Path("good"))
    catalogue = Catalogue(data_dir)
    units = units_of(candidate, catalogue, ["VaderTweets", "WordSim353"])
    done = tmp_path / "done"

    class OneDies(WordWorker):
        """Leaves a note when it is done; the one that works longer dies then, once."""

        def run(self, unit):
            if unit.reference.name == "VaderTweets" and not done.exists():
                while not done.exists():
                    time.sleep(0.05)
                time.sleep(1)  # until the other one is idle
                os._exit(1)
            outcome = super().run(unit)
            done.touch()
            return outcome

    cpus = iter((1, 1, 1000))
    setup = EvaluationSetup(catalogue, InstructionPolicy(), tmp_path)

    def start():
        return ray.remote(OneDies).options(num_cpus=next(cpus)).remote(setup, 1)

    def heartbeat(running):
        """End an evaluation in which nothing runs any more; actors that start slowly are waited for."""
        assert running or not done.exists(), "no actor runs anything"

    outcomes = dict(pool(units, start, 2, heartbeat=heartbeat).run())
    assert set(outcomes) == set(units)


@pytest.mark.ray
def test_two_actors_score_shards_as_one_process_and_a_killed_actor_is_replaced(cluster, data_dir, tmp_path):
    candidate = Candidate("trained", "f" * 64, Path("good"))
    marker = tmp_path / "killed"

    class MortalWorker(WordWorker):
        """Dies in its first shard of documents."""

        def run(self, unit):
            if unit.shard and unit.shard.side == "document" and not marker.exists():
                marker.touch()
                os._exit(1)
            return super().run(unit)

    catalogue = Catalogue(data_dir)
    units = units_of(candidate, catalogue, TASKS, shard_tokens=40)
    assert sum(unit.shard is not None for unit in units) > 6
    setup = EvaluationSetup(catalogue, InstructionPolicy(), tmp_path)
    actor = ray.remote(MortalWorker)
    across = {
        unit.reference.name: outcome.result
        for unit, outcome in pool(units, lambda: actor.remote(setup, 1), 2).run()
        if outcome.result
    }
    assert marker.exists()
    for name in TASKS:
        alone = evaluate_task(EngineEncoder(WordEngine(candidate.digest), "good"), load_task(name, data_dir))
        assert across[name].get_score() == pytest.approx(alone.get_score(), abs=1e-6)


@pytest.mark.ray
def test_actors_that_die_together_as_they_start_do_not_end_the_run(cluster, data_dir, tmp_path):
    class Stillborn:
        """Dies before it is up."""

        def ready(self):
            os._exit(1)

    catalogue = Catalogue(data_dir)
    setup = EvaluationSetup(catalogue, InstructionPolicy(), tmp_path)
    candidate = Candidate("trained", "f" * 64, Path("good"))
    units = units_of(candidate, catalogue, TASKS)
    kinds = [Stillborn] * ATTEMPTS
    remote = ray.remote(num_cpus=1)

    def start():
        return remote(kinds.pop()).remote() if kinds else remote(WordWorker).remote(setup, 1)

    assert len(list(pool(units, start, 2).run())) == len(TASKS)
    with pytest.raises(RuntimeError, match="evaluation: actors die as they start"):
        list(pool(units, lambda: remote(Stillborn).remote(), 1).run())


def test_smaller_vectors_are_scored_beside_whole_ones_and_texts_are_encoded_once(
    engines, data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("rayembed.compression.vectors.read_manifest", lambda folder: {"dimensions": 32})
    own = {"output": tmp_path, "data_dir": data_dir, "tasks": TASKS, "actors": 0}
    rows = rayembed.evaluate(checkpoint="good", vectors="16-float32,binary", **own)
    encoded = list(engines["good"].calls)
    plain = rayembed.evaluate(checkpoint="good", **own | {"output": tmp_path / "plain"})
    assert engines["good"].calls == 2 * encoded
    assert {name: row["vector_bytes"] for name, row in rows.items()} == {
        "float32": 128, "16-float32": 64, "binary": 4,
    }  # fmt: skip
    assert rows["float32"]["tasks"] == {task: row["trained"] for task, row in plain.items()}
    assert rows["binary"]["difference"] == pytest.approx(
        rows["binary"]["score"] - rows["float32"]["score"], abs=0.05
    )
    rates = {row["texts_per_second"] for row in rows.values()}
    assert len(rates) == 1
    assert min(rates) > 0
    assert not (tmp_path / "vectors").exists()
    assert "<svg" in (tmp_path / "vectors.html").read_text()
    assert "bytes a vector" in capsys.readouterr().out
    again = rayembed.evaluate(checkpoint="good", vectors="binary", **own)
    assert again["binary"]["texts_per_second"] == min(rates)  # nothing was encoded
    with pytest.raises(UserError, match="'half' is no form of vectors; write DIMENSIONS-FORMAT"):
        rayembed.evaluate(checkpoint="good", vectors="half", **own)
    with pytest.raises(UserError, match="--vectors scores smaller vectors of a --checkpoint alone"):
        rayembed.evaluate(checkpoint="good", vectors="binary", bm25=True, **own)

import json
import logging
import os
from pathlib import Path

import pytest
import ray

from rayembed.cluster import connect
from rayembed.errors import UserError
from rayembed.evaluation import runner
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.scheduler import Scheduler, Unit
from rayembed.evaluation.scores import format_table
from rayembed.evaluation.store import Candidate, ResultStore
from rayembed.evaluation.tasks import load_task
from rayembed.evaluation.worker import Worker
from tests.evaluation import conftest
from tests.evaluation.conftest import WordEngine

TASKS = ["DocstringRetrieval", "VaderTweets", "WordSim353"]


@pytest.fixture
def engines(monkeypatch, data_dir) -> dict[str, WordEngine]:
    """Two checkpoints, "good" and "base", that load as word engines; sources count as built."""
    loaded = {name: WordEngine(digest=name * 16) for name in ("good", "base")}
    monkeypatch.setattr(runner, "read_manifest", lambda folder: {"digest": loaded[folder.name].digest})
    monkeypatch.setattr(runner, "build_source", lambda name, data_dir: data_dir / name)
    monkeypatch.setattr("rayembed.evaluation.worker.Engine.load", lambda checkpoint: loaded[checkpoint.name])
    return loaded


def evaluate(data_dir: Path, output: Path, tasks: list[str] = TASKS):
    return runner.run(
        "good",
        output=output,
        data_dir=data_dir,
        baseline=("untrained", "base"),
        with_bm25=True,
        tasks=tasks,
        actors=0,
    )


def encodes(engines: dict[str, WordEngine]) -> int:
    return sum(len(engine.calls) for engine in engines.values())


def test_one_run_leaves_the_scores_the_table_and_a_result_a_task(engines, data_dir, tmp_path, capsys):
    scores = evaluate(data_dir, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"tasks": scores}
    assert scores["DocstringRetrieval"]["metric"] == "ndcg_at_10"
    assert scores["DocstringRetrieval"]["bm25"] > 0.9
    assert scores["WordSim353"]["bm25"] is None
    assert all(0 < row[column] <= 1 for row in scores.values() for column in ("base", "trained"))
    assert (tmp_path / "trained" / ("good" * 4) / "VaderTweets.json").is_file()
    assert (tmp_path / "untrained" / ("base" * 4) / "WordSim353.json").is_file()
    assert "DocstringRetrieval" in capsys.readouterr().out


def test_a_second_run_encodes_nothing(engines, data_dir, tmp_path):
    first = evaluate(data_dir, tmp_path)
    assert encodes(engines) > 0
    for engine in engines.values():
        engine.calls.clear()
    second = evaluate(data_dir, tmp_path)
    assert encodes(engines) == 0
    assert second["WordSim353"]["trained"] == pytest.approx(first["WordSim353"]["trained"], abs=1e-6)


def test_a_torn_result_is_run_again_with_a_warning(engines, data_dir, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rayembed"), "propagate", True)
    evaluate(data_dir, tmp_path)
    torn = tmp_path / "trained" / ("good" * 4) / "WordSim353.json"
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


def test_bad_requests_say_what_to_do(engines, data_dir, tmp_path):
    with pytest.raises(UserError, match="did you mean VaderTweets"):
        evaluate(data_dir, tmp_path, tasks=["VaderTweet"])
    with pytest.raises(UserError, match="cannot name a model"):
        runner.run("good", output=tmp_path, data_dir=data_dir, baseline=("a/b", "base"), actors=0)
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


@pytest.mark.ray
def test_two_actors_score_as_one_process_and_a_killed_actor_is_replaced(data_dir, tmp_path):
    candidate = Candidate("trained", "f" * 64, Path("good"))
    marker = tmp_path / "killed"

    class FakeWorker(Worker):
        """Loads a word engine, and dies in its first evaluation of the longest task."""

        def _encoder(self, candidate):
            return EngineEncoder(WordEngine(candidate.digest), candidate.label)

        def evaluate(self, candidate, task):
            if task == longest and not marker.exists():
                marker.touch()
                os._exit(1)
            return super().evaluate(candidate, task)

    units = [Unit(candidate, name, load_task(name, data_dir).workload) for name in TASKS]
    longest = max(units, key=lambda unit: unit.cost).task
    ray.cloudpickle.register_pickle_by_value(conftest)  # workers do not see the tests
    connect(num_cpus=2)
    try:
        actor = ray.remote(FakeWorker)
        across = {
            unit.task: result for unit, result in Scheduler(units, lambda: actor.remote(data_dir, 1), 2).run()
        }
    finally:
        ray.shutdown()
    alone = FakeWorker(data_dir)
    assert marker.exists()
    for name in TASKS:
        assert across[name].get_score() == alone.evaluate(candidate, name).get_score()

"""A miniature of the whole path, and what happens when its processes are killed."""

import re
import signal
import socket

import numpy as np
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import serve

from rayembed.common.errors import ResourceError
from rayembed.data.store import read_split
from rayembed.engine.engine import Engine
from rayembed.evaluation.run import run as evaluate
from rayembed.model.checkpoint import read_manifest
from rayembed.quickstart.head import local_head
from rayembed.reports.metrics import read_metrics
from rayembed.reports.run_report import write_report
from rayembed.serving.deploy import deploy
from tests.training_jobs import (
    ROOT,
    STEPS,
    assert_same_run,
    finish,
    start_training,
    trace,
    training_workers,
    wait_for_step,
    write_recipe,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def unbroken(home, tiny_base):
    """Run folder of a training that nobody disturbed."""
    recipe = write_recipe(home, tiny_base, "unbroken")
    return finish(start_training(home, recipe), home, recipe)


def test_training_learns_and_leaves_a_complete_run(unbroken):
    steps = trace(unbroken)
    assert [(stage, step) for stage, step, _ in steps] == [
        ("retrieval" if step < STEPS[0] else "blend", step) for step in range(sum(STEPS))
    ]
    assert np.mean([loss for _, _, loss in steps[30:40]]) < np.mean([loss for _, _, loss in steps[:5]])
    manifest = read_manifest(unbroken / "model")
    assert manifest["provenance"]["sources"] == ["labels", "pairs"]
    for name in ("recipe.yaml", "tensorboard", "untrained/rayembed.json"):
        assert (unbroken / name).exists()


def test_the_trained_model_is_evaluated_reported_and_served(unbroken, home, monkeypatch):
    monkeypatch.setenv("RAYEMBED_HOME", str(home))
    model = unbroken / "model"
    scores = evaluate(
        model,
        output=unbroken / "results",
        data_dir=home / "data",
        baseline=("untrained", unbroken / "untrained"),
        with_bm25=True,
        tasks=["DocstringRetrieval", "WordNetLexnameClustering"],
        actors=0,
    )
    assert 0 < scores["DocstringRetrieval"]["bm25"] < 1
    report = write_report(
        unbroken,
        title="miniature",
        records=read_metrics(unbroken / "metrics.jsonl"),
        scores=scores,
        seconds={"train": 1.0},
        versions={},
    )
    assert "DocstringRetrieval" in report.read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        url = deploy({"checkpoint": str(model), "model_name": "miniature", "num_cpus": 1}, port=port)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
        texts = ["rain 1", "about rain 1"]
        answer = client.embeddings.create(model="miniature", input=texts)
        queries = client.embeddings.create(model="miniature", input=texts, extra_body={"input_type": "query"})
    finally:
        serve.shutdown()
        ray.shutdown()
    engine = Engine.load(model)
    served = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(served, engine.encode(texts).vectors, atol=2e-2)
    asked = np.array([item.embedding for item in queries.data])
    np.testing.assert_allclose(asked, engine.encode(texts, instruction="Find").vectors, atol=2e-2)
    assert np.abs(served - asked).max() > 2e-2


def test_a_run_that_is_resubmitted_killed_and_told_to_end_is_as_an_unbroken_one(unbroken, home, tiny_base):
    recipe = write_recipe(home, tiny_base, "disturbed", max_failures=1)
    run_folder, log = home / "runs" / recipe.stem, home / f"{recipe.stem}.log"
    process = start_training(home, recipe)
    wait_for_step(run_folder, 6, process)
    [worker] = training_workers(process)
    process.send_signal(signal.SIGKILL)
    worker.kill()  # Ray ends it seconds later, when it may have taken all steps
    process.wait()
    assert len(trace(run_folder)) < STEPS[0]
    assert "continues at step" not in log.read_text()

    process = start_training(home, recipe)
    wait_for_step(run_folder, 16, process)
    [worker] = training_workers(process)
    worker.kill()
    wait_for_step(run_folder, 24, process)
    [worker] = training_workers(process)
    worker.terminate()  # it leaves a checkpoint of its last step, and no failure is counted
    finish(process, home, recipe)
    [last] = re.findall(r"all leave after step (\d+)", log.read_text())
    assert f"stage retrieval continues at step {int(last) + 1} of {STEPS[0]}, 1 worker" in log.read_text()
    assert log.read_text().count("stage retrieval continues at step") == 3
    assert "State API" not in log.read_text(), "Ray Train complains of the missing dashboard every second"
    assert_same_run(run_folder, unbroken)


CARD = """---
configs:
- config_name: pair-class
  data_files: [{split: train, path: pair-class/train-*}]
- config_name: triplet
  data_files: [{split: train, path: triplet/train-*}, {split: test, path: triplet/test-*}]
---
"""
THREE_LINES = """extends: tiny
data: {sources: {nli: {hub: downloads/all-nli, config: triplet, split: train, in_batch_negatives: true}}}
stages: {retrieval: {steps: 3, blend: {pairs: null, nli: 1}}}
"""


def test_three_lines_train_on_a_folder_as_it_comes_from_a_hub(home, tiny_base):
    folder = home / "downloads" / "all-nli"
    for name in ("pair-class", "triplet"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    for split, rows in (("train-00000-of-00002", 8), ("train-00001-of-00002", 8), ("test-00000-of-00001", 4)):
        texts = {
            column: [f"{column} {split} {row}" for row in range(rows)]
            for column in ("anchor", "positive", "negative")
        }
        pq.write_table(pa.table(texts), folder / "triplet" / f"{split}.parquet")
    classes = pa.table({"premise": ["a"], "hypothesis": ["b"], "label": [0]})
    pq.write_table(classes, folder / "pair-class" / "train-00000-of-00001.parquet")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_recipe(home, tiny_base, "tiny", stages=1)
    recipe = home / "mine.yaml"
    recipe.write_text(THREE_LINES)
    process = start_training(home, recipe)
    assert process.wait(timeout=480) == 0, (home / "mine.log").read_text()[-5000:]
    assert trace(home / "runs" / "tiny")[-1][:2] == ("retrieval", 2)
    assert read_manifest(home / "runs" / "tiny" / "model")["provenance"]["sources"] == ["nli"]
    rows = read_split(home / "data", "nli", "train").to_pylist()
    assert {row["query"].rpartition(" ")[0] for row in rows} == {
        "anchor train-00000-of-00002",
        "anchor train-00001-of-00002",
    }
    assert {(len(row["positives"]), len(row["negatives"])) for row in rows} == {(1, 1)}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_workers_of_a_submitted_job_train_the_same_model(unbroken, home, tiny_base):
    recipe = write_recipe(home, tiny_base, "two-workers", workers=2, stages=1)
    with local_head(home) as head:
        head.submit(["python", "jobs/train.py", str(recipe)], working_dir=ROOT)
        with pytest.raises(ResourceError, match="failed"):
            head.submit(["python", "jobs/train.py", "no-such-recipe.yaml"], working_dir=ROOT)
    # Dropout differs by rank and bf16 rounds differently, so only the course of the losses is compared.
    ours, theirs = (
        np.array([loss for stage, _, loss in trace(folder) if stage == "retrieval"])
        for folder in (home / "runs" / recipe.stem, unbroken)
    )
    assert ours.shape == theirs.shape == (STEPS[0],)
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=0.05)
    assert ours[30:40].mean() < ours[:5].mean()

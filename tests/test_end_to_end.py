"""A miniature of the whole path, and what happens when its processes are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openai
import psutil
import pytest
import ray
import yaml
from ray import serve

from rayembed.errors import ResourceError
from rayembed.evaluation import run as evaluate
from rayembed.inference.engine import Engine
from rayembed.model.checkpoint import read_manifest
from rayembed.quickstart.head import local_head
from rayembed.reporting.html import write_report
from rayembed.reporting.metrics import read_metrics
from rayembed.serving.deploy import deploy

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
STEPS = (40, 6)
KILL_AT = 12


def write_recipe(home: Path, base: Path, name: str, workers: int = 1) -> Path:
    """Two stages over two sources of the user's own, with small steps and frequent checkpoints."""
    words = ["sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist", "storm", "cloud", "frost"]
    pairs = [{"query": f"{word} {n}", "positive": f"about {word} {n}"} for n in range(4) for word in words]
    labels = [{"text": f"{word} {n}", "label": word[0]} for n in range(4) for word in words]
    for file, rows in (("pairs", pairs), ("labels", labels)):
        (home / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    retrieval = {"source": "pairs", "weight": 1, "instruction": "Find", "in_batch_negatives": True}
    sorting = retrieval | {"source": "labels", "symmetric": True, "in_batch_negatives": False}
    stage = {"batch_size": 8, "learning_rate": 5e-3, "temperature": 0.1}
    recipe = {
        "name": name,
        "base_model": str(base),
        "contract": {"max_length": 128},
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "data": {
            "sources": {
                "pairs": {"path": "pairs.jsonl"},
                "labels": {"path": "labels.jsonl", "kind": "labels", "task_type": "classification"},
            }
        },
        "stages": [
            stage
            | {"name": "retrieval", "steps": STEPS[0], "blend": [retrieval | {"mining": {"method": "bm25"}}]},
            stage | {"name": "blend", "steps": STEPS[1], "blend": [retrieval, sorting]},
        ],
        "training": {
            "workers": workers,
            "cpus_per_worker": 0.5,
            "checkpoint_every": 4,
            "threads_per_worker": 1,
        },
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start_training(home: Path, recipe: Path) -> subprocess.Popen:
    """The job's own script, as `ray job submit` would run it, on a local cluster of its own."""
    environment = os.environ | {
        "RAYEMBED_HOME": str(home),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, "jobs/train.py", "--config", str(recipe)]
    with (home / f"{recipe.stem}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, home: Path, recipe: Path) -> Path:
    """Wait for a job to end well; returns the run folder."""
    assert process.wait(timeout=240) == 0, (home / f"{recipe.stem}.log").read_text()[-5000:]
    return home / "runs" / recipe.stem


def trace(run_folder: Path) -> list[tuple[str, int, float]]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["stage"], record["step"], record["loss"]) for record in records]


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


def wait_for_step(run_folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    path = run_folder / "metrics.jsonl"
    while not (path.is_file() and len(path.read_text().splitlines()) > step):
        assert process.poll() is None
        assert time.monotonic() < deadline, "training did not reach the step"
        time.sleep(0.01)


def training_workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_a_killed_process_changes_nothing(unbroken, home, tiny_base, victim):
    recipe = write_recipe(home, tiny_base, f"killed-{victim}")
    process = start_training(home, recipe)
    wait_for_step(home / "runs" / recipe.stem, KILL_AT, process)
    if victim == "worker":
        [worker] = training_workers(process)
        worker.kill()
    else:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(trace(home / "runs" / recipe.stem)) < STEPS[0]
        process = start_training(home, recipe)
    run_folder = finish(process, home, recipe)
    log = (home / f"{recipe.stem}.log").read_text()
    assert "continues at step" in log, "the run was not resumed"
    assert trace(run_folder) == trace(unbroken)
    ours, theirs = (read_manifest(folder / "model")["files"] for folder in (run_folder, unbroken))
    assert ours == theirs, "the weights differ"


def test_two_workers_of_a_submitted_job_train_the_same_model(unbroken, home, tiny_base):
    recipe = write_recipe(home, tiny_base, "two-workers", workers=2)
    with local_head(home) as head:
        head.submit(["python", "jobs/train.py", "--config", str(recipe)], repository=ROOT)
        with pytest.raises(ResourceError, match="failed"):
            head.submit(["python", "jobs/train.py", "--config", "no-such-recipe.yaml"], repository=ROOT)
    # Dropout differs by rank and bf16 rounds differently, so only the course of the losses is compared.
    ours, theirs = (
        np.array([loss for _, _, loss in trace(folder)]) for folder in (home / "runs" / recipe.stem, unbroken)
    )
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=0.05)
    assert ours[30:40].mean() < ours[:5].mean()

"""A training job in miniature in a process of its own, to be disturbed and compared with one that was not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import yaml

from rayembed.model.checkpoint import read_manifest

ROOT = Path(__file__).resolve().parents[1]
STEPS = (40, 6)


def write_recipe(
    home: Path, base: Path, name: str, workers: int = 1, stages: int = len(STEPS), **training: object
) -> Path:
    """Up to two stages over two sources of the user's own, with small steps and frequent checkpoints.

    `training` adds to the section of that name, or replaces its settings.
    """
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
        ][:stages],
        "training": {
            "workers": workers,
            "cpus_per_worker": 0.5,
            "checkpoint_every": 4,
            "threads_per_worker": 1,
        }
        | training,
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start_training(
    home: Path, recipe: Path, *overrides: str, before: Sequence[str] = (), **variables: str
) -> subprocess.Popen:
    """The job's own script, as `ray job submit` would run it, on a local cluster of its own.

    Args:
        home: workspace of the run.
        recipe: what `write_recipe` returned.
        overrides: `key=value` for `--set`.
        before: command that starts the job's.
        variables: further environment variables.
    """
    environment = {
        **os.environ,
        "RAYEMBED_HOME": str(home),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "DS_ACCELERATOR": "cpu",
        **variables,
    }
    command = [*before, sys.executable, "jobs/train.py", str(recipe)]
    command += [f"--set={override}" for override in overrides]
    with (home / f"{recipe.stem}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, home: Path, recipe: Path) -> Path:
    """Wait for a job to end well; returns the run folder."""
    assert process.wait(timeout=480) == 0, (home / f"{recipe.stem}.log").read_text()[-5000:]
    return home / "runs" / recipe.stem


def trace(run_folder: Path) -> list[tuple[str, int, float]]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["stage"], record["step"], record["loss"]) for record in records]


def assert_same_run(run_folder: Path, unbroken: Path) -> None:
    """Two runs took the same steps with the same losses, and their models are the same bytes."""
    assert trace(run_folder) == trace(unbroken)
    ours, theirs = (read_manifest(folder / "model")["files"] for folder in (run_folder, unbroken))
    assert ours == theirs, "the weights differ"


def wait_for(condition: Callable[[], object], log: Path, seconds: float = 500) -> None:
    """Look until it holds; the end of `log` explains why it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.02)


def wait_for_step(run_folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 480
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
